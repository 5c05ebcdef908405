"""How good a model is: summaries, ROUGE, held-out losses, what was kept."""
