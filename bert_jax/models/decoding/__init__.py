"""How a writer's logits become texts: greedily, by beams or by samples, in one program for all sources of a batch.

Letters besides those of `models`: G sources, B rows, W = B / G rows of one source (beams or samples), C candidates of a
step, K targets that are returned, T tokens that a target has room for.
"""
