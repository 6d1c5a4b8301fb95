"""All runs of a study: planned and checked, made by processes of this machine or by Slurm, searched with Optuna."""
