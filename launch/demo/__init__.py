"""The whole job as one command, and the corpus that every machine has."""
