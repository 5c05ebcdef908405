"""Decoding at the speed of memory on CPUs: weights packed once, and attention of few queries."""
