"""What a run costs, known before it starts: memory, floating-point operations."""
