"""Shards on disk or remote: written, read, verified, shown."""
