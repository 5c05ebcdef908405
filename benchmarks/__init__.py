"""What is measured, against what, with committed results; see README.md."""
