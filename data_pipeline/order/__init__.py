"""Which documents form which global batch: a pure function of seed, lengths, settings and step."""
