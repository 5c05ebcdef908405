"""DeepSpeed: joining the job, the engine, its optimizer, what all ranks agree on."""
