"""Vocabularies: train, load, save, encode with character offsets.

`encoding.py` is the interface, `tokenizer.py` trains and loads, `vocabulary.py` learns a vocabulary, `wordpiece.py` is
the fast WordPiece, `original_wordpiece.py` the 2018 algorithm to the letter.
"""
