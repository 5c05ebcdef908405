"""From shards to batches: examples, collation, reading ahead, the loader."""
