"""How a writer's logits become texts: greedily, by beams or by samples, in one program for all sources of a batch."""
