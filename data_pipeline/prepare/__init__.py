"""From documents to shards: `transpooler prepare`."""
