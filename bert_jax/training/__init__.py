"""The one loop: it knows a `Task`, never which. Step, optimizer, sharding, checkpoints, parameters, the metrics log."""
