"""Text in, batches on the mesh out.

`corpus.py` streams documents from files, TFDS or the built-in sample (`sample.py`) and splits them into sentences
(`sentences.py`); `tokenizer.py` trains, loads and applies vocabularies (`vocabulary.py` learns one,
`original_wordpiece.py` is the 2018 algorithm to the letter); `prepare.py` turns a corpus into ArrayRecord shards of
chunks; `pairs.py` makes sentence pairs of chunks; `pipeline.py` reads shards into global batches.

For fine-tuning, `tables.py`, `conll.py` and `squad.py` read files and TFDS names into the examples of `examples.py`,
which also reports on them. A task encodes an example as an `Item` (`items.py`). `batch_plan.py` decides how items
become batches: which of them share one (`batch_order.py`), of which shape it is (`shapes.py`); `batches.py` makes them.
"""
