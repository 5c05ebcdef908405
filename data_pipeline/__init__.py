"""Documents to shards to batches. Knows nothing of the model."""
