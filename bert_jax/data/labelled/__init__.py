"""Files of labelled data in, examples out.

`tables.py` reads files and TFDS names into rows, `inputs.py` also what is to be predicted. `columns.py`, `conll.py`,
`documents.py` and `squad.py` turn rows into the examples of `examples.py`, which also reports on them, `parallel.py`
also two files whose lines belong together; `windows.py` splits long texts.
"""
