"""The pooling encoder-decoder and its operators. Knows tensors; nothing of files, clusters or DeepSpeed."""
