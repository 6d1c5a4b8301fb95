"""A trained checkpoint at work. Each tool needs a checkpoint and nothing else."""
