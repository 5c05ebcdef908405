"""What every package may use and what uses none of them: errors, files, field rules, log and progress, tables."""
