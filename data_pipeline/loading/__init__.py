"""From shards to batches: examples, their objectives, collation, the loader."""
