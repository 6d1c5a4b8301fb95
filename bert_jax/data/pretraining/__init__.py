"""Documents in, pretraining rows out.

`prepare.py` turns a corpus into ArrayRecord shards (`records.py`) of chunks (`chunks.py`, in many processes by
`workers.py`) with a split per document (`splits.py`) and a report (`report.py`); `prepared.py` opens the folder again.
`pairs.py` makes rows of sentence pairs from chunks, `packing.py` rows of several, `original.py` the instances of the
original script; `pipeline.py` makes global batches of rows.
"""
