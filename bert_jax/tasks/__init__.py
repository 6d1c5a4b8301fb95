"""What is learned: examples to features, a head, a loss, metrics. One file a task family, one interface (`task.py`)."""
