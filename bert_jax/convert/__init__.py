"""Other people's checkpoints in and out. Each format is a file with `load` and, where it can be written, `save`.

Inside, parameters are a flat dict {name: array} under our names, as `training/parameters.py` has them. A name that
nothing explains is an error, in both directions: a checkpoint is never half loaded in silence.
"""
