"""The report on fine-tuning data: what it counts, what it says, and what it warns of."""

import json

from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.labelled.examples import TextExample, format_summary, summarise, warnings


def examples(name: str, *rows: tuple) -> list[TextExample]:
    """Each row is (text, label) or (text, text_pair, label)."""
    return [
        TextExample(f"{name}:{number}", row[0], row[1] if len(row) == 3 else None, row[-1])
        for number, row in enumerate(rows, 2)
    ]


TRAIN = examples(
    "train", ("good", "pos"), ("bad", "neg"), (" good\n", "pos"), ("so  so", "pos"), ("so so", "neg"), ("", None)
)
DEV = examples("dev", ("good", "neg"), ("new", "neu"), ("bad", "neg"), ("bad", None))


def test_counts_by_hand():
    report = summarise({"train": TRAIN, "dev": DEV})
    assert report == {
        "splits": {
            "train": {
                "examples": 6,
                "unlabelled": 1,
                "empty_texts": 1,
                "duplicates": 2,  # " good\n" and "so so"
                "conflicts": 1,
                "labels": {"pos": 3, "neg": 2},
                "label_values": {},
                "characters": {"min": 0, "median": 4, "p90": 6, "p99": 6, "max": 6},  # of 0 3 4 5 6 6
                "first": {
                    "unlabelled": "train:7",
                    "empty_texts": "train:7",
                    "duplicates": "train:4",
                    "conflicts": "train:5",
                },
            },
            "dev": {
                "examples": 4,
                "unlabelled": 1,
                "empty_texts": 0,
                "duplicates": 1,
                "conflicts": 0,
                "labels": {"neg": 2, "neu": 1},
                "label_values": {},
                "characters": {"min": 3, "median": 3, "p90": 3, "p99": 3, "max": 4},
                "first": {"unlabelled": "dev:5", "duplicates": "dev:5"},
            },
        },
        "shared": [{"of": "dev", "in": "train", "examples": 3, "other_label": 1, "first": "dev:2"}],
    }
    assert json.loads(json.dumps(report)) == report


def test_the_second_text_counts():
    report = summarise({"a": examples("a", ("x", "y", "1"), ("x", "z", "0"), ("x", "", "0"))})
    split = report["splits"]["a"]
    assert (split["duplicates"], split["conflicts"], split["empty_texts"]) == (0, 0, 1)
    assert split["characters"] == {"min": 1, "median": 2, "p90": 2, "p99": 2, "max": 2}


def test_numbers_and_several_labels():
    scores = examples("a", *((f"text {i}", i / 10) for i in range(11)))
    split = summarise({"a": scores})["splits"]["a"]
    assert split["label_values"] == {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.9, "max": 1.0}
    assert split["labels"] == {}
    topics = examples("b", ("x", ("oil", "gas")), ("x", ("gas", "oil")), ("y", ()), ("x", ("oil",)))
    split = summarise({"b": topics})["splits"]["b"]
    assert split["labels"] == {"oil": 3, "gas": 2}
    assert (split["conflicts"], split["unlabelled"]) == (1, 0)  # the order of labels makes none


def test_report_reads_well():
    assert format_summary(summarise({"train": TRAIN, "dev": DEV})).splitlines() == [
        "train: 6 examples (1 unlabelled, 1 empty texts, 2 duplicates, 1 conflicts)",
        "  labels: pos 3 (50.0%), neg 2 (33.3%)",
        "  characters: min 0, median 4, p90 6, p99 6, max 6",
        "dev: 4 examples (1 unlabelled, 1 duplicates)",
        "  labels: neg 2 (50.0%), neu 1 (25.0%)",
        "  characters: min 3, median 3, p90 3, p99 3, max 4",
        "3 texts of dev are in train, 1 with another label",
    ]
    many = summarise({"a": examples("a", *((str(i), f"l{i:02}") for i in range(40)))})
    assert format_summary(many).splitlines()[1].endswith("l29 1 (2.5%), and 10 more")
    assert format_summary(summarise({"none": []})) == "none: 0 examples"


def test_every_warning_says_where():
    assert warnings(summarise({"train": TRAIN, "dev": DEV})) == [
        "train: 1 examples with an empty text (first: train:7)",
        "train: 2 examples repeat an earlier one (first: train:4)",
        "train: 1 texts have several labels (first: train:5)",
        "train: 1 examples have no label (first: train:7)",
        "dev: 1 examples repeat an earlier one (first: dev:5)",
        "dev: 1 examples have no label (first: dev:5)",
        "dev: 3 texts are in train too (first: dev:2), 1 with another label: scores on them say little",
        "train: hardly any examples of 'neg' 2, 'pos' 3",
        "dev: labels that train does not have: 'neu'",
    ]


def test_warnings_about_labels():
    same = examples("train", *((f"text {i}", "pos") for i in range(9)))
    assert warnings(summarise({"train": same})) == ["train: every label is 'pos': there is nothing to learn"]
    spelled = examples("train", *((f"text {i}", label) for i, label in enumerate(["pos", "Pos", "neg"] * 5)))
    assert warnings(summarise({"train": spelled})) == ["labels 'Pos', 'pos' differ in case or white space only"]


def test_clean_splits_and_an_unlabelled_test_set_have_no_warning():
    train = examples("train", *((f"text {i}", str(i % 2)) for i in range(10)))
    test = examples("test", *((f"test {i}", None) for i in range(10)))
    assert warnings(summarise({"train": train, "test": test})) == []


rows = st.lists(st.tuples(st.sampled_from("abc "), st.sampled_from([None, "x", "y"])))


@given(rows, rows)
def test_counts_agree_with_quadratic_ones(first, second):
    report = summarise({"a": examples("a", *first), "b": examples("b", *second)})
    a = report["splits"]["a"]
    strip = [text.strip() for text, _ in first]
    assert a["duplicates"] == sum(text in strip[:i] for i, text in enumerate(strip))
    assert a["conflicts"] == sum(
        {"x", "y"} <= {label for other, label in first if other.strip() == text} for text in set(strip)
    )
    assert sum(a["labels"].values()) + a["unlabelled"] == len(first)
    assert report["shared"][0]["examples"] == sum(text.strip() in strip for text, _ in second)
