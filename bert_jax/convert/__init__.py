"""Other people's checkpoints in and out: `python -m bert_jax.convert`, or `conversion.convert` from a notebook.

`huggingface.py` and `google_tf.py` turn a folder into a `Loaded` (mapping.py): config, parameters under our names,
tokenizer, task, and a report of every name. Both walk over the one table in `names.py`. A name that nothing explains
is an error, in both directions: a checkpoint is never half loaded in silence.

`portable.py` writes a model as a program that runs without this package, in one of the formats of `programs.py`;
`parity.py` compares it with the model on a file.
"""
