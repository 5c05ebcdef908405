"""`transpooler doctor`: what hosts say of themselves, and what keeps them from training together."""
