"""One small file an experiment: `base.py` declares every key, the others are differences from it."""
