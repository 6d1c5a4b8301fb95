"""Sentence boundaries: one regular expression finds candidates, a few table look-ups reject some of them."""

import re

# ruff: noqa: SIM905 (word lists read better as text)
_TITLES = frozenset(
    "mr mrs ms messrs mme mlle dr prof rev hon st mt ft gen col maj capt cpt lt sgt cmdr adm gov sen rep pres supt esq "
    "vs viz cf al approx e.g i.e".split()
)
_BEFORE_NUMBERS = frozenset(
    "no nos p pp vol vols ch chap sec art fig figs eq ed bk pt op ca c "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_DOTTED = re.compile(r"(?:\w\.)+\w|[A-HJ-Z]")  # U.S, a.m, J (but not I)
_STARTERS = frozenset(
    "The He She It They We In On At This That These Those There A An But And However When After As His Her Its".split()
)
_WORD = re.compile(r"\w+")
_OPENING = "\"'“‘«([{¿¡—-"

# Each begins with a plain character class: the engine then skips to the next candidate without trying.
_LATIN_END = r"[\n.!?…؟۔।](?:(?<=\n)\s*|[.!?…؟۔।]*[\"'”’»)\]]*\s+)"
_CJK_END = r"[。！？｡…][。！？｡…!?]*[」』”’）】》〉\"')\]]*\s*(?![，、,；：」』）】》〉]|[とっ]|[。！？])"
_LATIN = re.compile(_LATIN_END)
_CJK = re.compile(f"{_LATIN_END}|{_CJK_END}")


def split_text(text: str) -> list[str]:
    """Returns the sentences of a text whose paragraphs are lines: no sentence crosses a line, none is empty, none has
    white space at its ends. A full stop after a title, an initial, an abbreviation or before a lower-case letter ends
    nothing; 。！？… end a sentence without a space, and closing quotes and brackets stay with it."""
    cjk = "。" in text or "！" in text or "？" in text
    sentences = []
    start = 0
    for match in (_CJK if cjk else _LATIN).finditer(text):
        end = match.end()
        if end < len(text) and not _ends_sentence(text, start, match.start(), end):
            continue
        sentence = text[start:end].strip()
        if sentence:
            sentences.append(sentence)
        start = end
    rest = text[start:].strip()
    if rest:
        sentences.append(rest)
    return sentences


def _ends_sentence(text: str, start: int, mark: int, end: int) -> bool:
    """`mark` is where the candidate's punctuation begins, `end` where the next sentence would."""
    char = text[mark]
    if char in "\n。！？｡" or "\n" in text[mark:end]:
        return True
    following = text[end]
    if following in _OPENING:
        following = text[end : end + 4].lstrip(_OPENING)[:1]
    if following.islower():
        return False
    if char != ".":
        return True
    word = text[max(text.rfind(" ", start, mark) + 1, start) : mark].lstrip(_OPENING)
    if len(word) > 7:
        return True
    lower = word.lower()
    if lower in _TITLES:
        return False
    if lower in _BEFORE_NUMBERS:
        return not following.isdigit()
    if word.isdigit() and mark - start == len(word):  # "1. First point"
        return False
    if _DOTTED.fullmatch(word):
        next_word = _WORD.match(text, end)
        return next_word is not None and next_word[0] in _STARTERS
    return True
