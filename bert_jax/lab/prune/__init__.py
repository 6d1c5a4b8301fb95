"""A fine-tuned model with fewer heads and layers: the curves of leaving them out, and a smaller checkpoint."""
