"""The words that the score is about: whole words of held-out documents, hidden by a rule that knows no vocabulary.

The documents are the test split of the corpus by the default `data.seed` and shares, whatever an entry sets. Their text
is lower-cased and has no accents. A word is a run of letters and digits; whether it is hidden follows from the hash of
its document and its number. A context is 64 consecutive words with what stands between them.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.pretraining.splits import split_documents
from bert_jax.data.text.corpus import open_corpus
from bert_jax.data.tokenizers.rows import Span
from bert_jax.options import default_config

HIDDEN_SHARE = 0.15  # of the words
CONTEXT_WORDS = 64
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Context:
    """A piece of a document: its text, and the (start, end) characters of all its words and of the hidden ones."""

    text: str
    words: tuple[Span, ...]
    hidden: tuple[Span, ...]


def held_out_texts(data: ConfigDict) -> list[str]:
    """Returns the plain texts of the held-out documents of the corpus that the `data` group of a config names, in the
    order of their hashes, each text once. Raises UserError if there are none."""
    own = default_config().data  # neither the split nor the cleaning of an entry decides what it is scored on
    own.update({name: data[name] for name in ("corpus", "files", "text_field")})
    split = split_documents(open_corpus(own).documents(), own.seed, own.validation_share, own.test_share)
    texts = {plain(document.text) for name, document in split if name == "test"} - {""}
    if not texts:
        raise UserError(f"data.files={own.files!r}: the corpus has no document that is held out; give the whole corpus")
    return sorted(texts, key=_hash)


def cut(texts: Iterable[str]) -> list[Context]:
    """Returns the contexts of plain texts, those without a hidden word left out."""
    return [context for text in texts for context in _contexts(text) if context.hidden]


def digest(contexts: Sequence[Context]) -> str:
    """Returns a hash of the texts and of what is hidden in them: scores with the same one can be compared."""
    content = json.dumps([[context.text, context.hidden] for context in contexts])
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def plain(text: str) -> str:
    """Returns the text in lower case, without accents, on one line."""
    bare = (character for character in unicodedata.normalize("NFD", text) if unicodedata.category(character) != "Mn")
    return " ".join(unicodedata.normalize("NFC", "".join(bare).lower()).split())


def halves(context: Context) -> tuple[Context, Context]:
    """Returns the two halves of a context that is too long for a model, which has then less to go by."""
    middle = context.words[len(context.words) // 2][0]
    return _part(context, 0, middle), _part(context, middle, len(context.text))


def _contexts(text: str) -> list[Context]:
    words = [match.span() for match in _WORD.finditer(text)]
    key = _hash(text)
    whole = Context(text, tuple(words), tuple(word for number, word in enumerate(words) if _is_hidden(key, number)))
    # The first context begins with the document, what stands between two of them belongs to the earlier one.
    begins = [0, *(start for start, _ in words[CONTEXT_WORDS::CONTEXT_WORDS]), len(text)]
    return [_part(whole, begin, end) for begin, end in pairwise(begins)]


def _part(context: Context, begin: int, end: int) -> Context:
    words, hidden = (
        tuple((start - begin, stop - begin) for start, stop in spans if begin <= start < end)
        for spans in (context.words, context.hidden)
    )
    return Context(context.text[begin:end], words, hidden)


def _is_hidden(key: bytes, number: int) -> bool:
    drawn = hashlib.blake2b(b"%d" % number, digest_size=8, key=key).digest()
    return int.from_bytes(drawn, "big") < HIDDEN_SHARE * 2.0**64


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
