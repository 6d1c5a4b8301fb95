"""What a row of a table has beside its text: a picture, a sound or features of regions → vectors with their positions.

`source.py` says, for a config, which column names the files and how many vectors a row gives. `arrays.py`, `images.py`
and `sound.py` read one file each.
"""
