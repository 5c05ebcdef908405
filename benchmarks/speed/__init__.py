"""`transpooler bench speed`: what an architecture costs at a length, each cell measured in a process of its own."""
