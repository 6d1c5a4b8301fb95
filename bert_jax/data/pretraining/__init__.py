"""Documents in, pretraining rows out.

`prepare.py` turns a corpus into ArrayRecord shards (`records.py`) of chunks (`chunks.py`) with a report (`report.py`);
`pairs.py` makes sentence pairs from chunks, `packing.py` packs several into a row, `original.py` makes the instances
of the original script; `pipeline.py` reads shards into global batches.
"""
