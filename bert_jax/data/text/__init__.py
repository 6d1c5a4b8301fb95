"""Files and data sets in, documents and sentences out.

`text_files.py` opens, decompresses and decodes files; `corpus.py` streams documents from files, TFDS
(`tfds_names.py`) or the built-in sample (`sample.py`); `sentences.py` splits them into sentences.
`formats.py` refuses files of other formats; `json_files.py` checks JSON from elsewhere field by field.
"""
