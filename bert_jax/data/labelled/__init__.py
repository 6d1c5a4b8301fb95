"""Files of labelled data in, examples out.

`tables.py`, `conll.py` and `squad.py` read files and TFDS names into the examples of `examples.py`, which also reports
on them; `words.py` splits a text into words to tag; `windows.py` splits long texts into windows.
"""
