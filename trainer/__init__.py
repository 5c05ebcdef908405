"""The training system: loop, DeepSpeed engine, checkpoints, evaluation, metrics, export, report."""
