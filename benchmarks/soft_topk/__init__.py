"""Speed, memory and approximation quality of soft_topk: `python -m benchmarks.soft_topk`."""
