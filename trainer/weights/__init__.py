"""Weights on disk: exports for `transformers`, and starts from them."""
