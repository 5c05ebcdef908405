"""`transpooler bench quality`: what architectures learn from the same documents under the same budget."""
