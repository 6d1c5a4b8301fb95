"""A trained checkpoint at work. Each tool needs a checkpoint folder and nothing else."""
