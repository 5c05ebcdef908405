"""Many hosts: what to start where, through the engines that clusters have, and what to do when it ends."""
