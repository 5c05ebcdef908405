"""The precisions that `prepare_for_inference` knows. No torch here."""

PRECISIONS = ("fp32", "bf16", "int8")
"""Of the weights that write: fp32 keeps them as they are."""
