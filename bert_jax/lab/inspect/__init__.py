"""Looking inside a model: attention, attributions, losses of single tokens, neighbours, probes, heads that matter.

    python -m bert_jax.lab.inspect runs/a --text="The bank of the river" --output=inspect.html

The command makes one page. Each part is also a function of a model that `bert_jax.load` returned, for a notebook:
`heads.py` has attention, rollout and head_importance, `tokens.py` gradient_times_input, integrated_gradients and
token_losses, `vectors.py` neighbours, context_neighbours and project, `probes.py` probe_layers. Letters of shapes are
those of `models/`.
"""
