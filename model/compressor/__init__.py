"""Any causal language model as the reader of a pooled document: a hosted encoder, an adapter, a stock reader."""
