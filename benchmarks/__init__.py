"""What is measured, and against what. Results are in results/, with date, hardware, commit and versions."""
