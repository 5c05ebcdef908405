"""The command line `transpooler` and everything that starts processes."""
