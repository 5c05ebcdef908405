"""What every package may use and what uses none of them: user errors, atomic files, progress lines."""
