"""Arrays in, arrays out: the encoder, its layers and heads. No labels, no losses, no files.

`nnx.Module` only holds parameters; the rest is plain JAX. A call takes a `key` for dropout, and no key means
deterministic. The letters of every shape in the project:

    B batch    L length    P predictions a row    D hidden size      E embedding size    H heads    K head size
    F feed-forward size    V vocabulary           T token types      N layers            C classes
"""
