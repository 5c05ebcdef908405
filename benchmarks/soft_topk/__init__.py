"""Speed, memory and approximation quality of soft_topk: `python -m transpooler.benchmarks.soft_topk`."""
