"""The parts of the encoder-decoder: attention within blocks, to slots and causal; layers; positions."""
