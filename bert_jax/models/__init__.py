"""Arrays in, arrays out: trunk, layers, heads, and models that write. No labels, no losses, no files.

`nnx.Module` only holds parameters; the rest is plain JAX. A call takes a `key` for dropout, and no key means
deterministic. The letters of every shape, as far as models are concerned; `data/batching/batches.py` has those of rows:

    B rows      L tokens of a row     P positions asked for    S sequences in a row    W rows of one item (windows)
    G items of W rows    D hidden size    E embedding size    H heads    K head size    F feed-forward size    N layers
    V vocabulary     T token types       C classes     M keys that a mask speaks of: L, or the size of a cache
    R tokens of what cross-attention reads
"""
