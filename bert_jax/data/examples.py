"""What the readers of fine-tuning data give: plain examples, before any tokenizer has seen them.

Every example says in `origin` where it comes from ("train.csv:17", "dev.json:data[3].paragraphs[0].qas[1]"), for
messages.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextExample:
    """`label` is a class name, a number (regression) or class names (several a text); None if there is none."""

    origin: str
    text: str
    text_pair: str | None = None
    label: str | float | tuple[str, ...] | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class TaggedExample:
    """`spaces_between` is False where words are characters of one text, as in Chinese."""

    origin: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    spaces_between: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    start: int  # characters from the start of the context


@dataclass(frozen=True, slots=True)
class QuestionExample:
    origin: str
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    is_impossible: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """Each choice ends what `context` and `ending_start` begin; `label` counts from 0."""

    origin: str
    id: str | None
    context: str
    ending_start: str  # what all choices begin with; may be empty
    choices: tuple[str, ...]
    label: int | None = None
