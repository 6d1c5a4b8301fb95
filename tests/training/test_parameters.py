"""What a warm start takes over, by patterns of names."""

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.training.parameters import first_names, matching, take_over

HERE = {"encoder/x": np.zeros(2), "heads/mine/bias": np.zeros(3)}
THERE = {"encoder/x": np.ones(2), "heads/other/bias": np.ones(4)}


def start(there=THERE, new="mine", dropped="other/"):
    return take_over(HERE, there, new=new, dropped=dropped, origin="ckpt")  # pyright: ignore[reportArgumentType]


def test_patterns_match_anywhere_in_a_name_as_those_of_options_do():
    values, report = start()
    assert values["encoder/x"].tolist() == [1, 1] and values["heads/mine/bias"].tolist() == [0, 0, 0]
    assert (report.loaded, report.missing, report.unexpected) == (
        ["encoder/x"],
        ["heads/mine/bias"],
        ["heads/other/bias"],
    )
    assert matching("x", "", HERE) == set() and matching("x", "^encoder", HERE) == {"encoder/x"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new": ""}, "cannot start from ckpt: heads/mine/bias is not in it; the two models must be alike"),
        ({"dropped": "^other/"}, "heads/other/bias has no counterpart here"),
        ({"there": THERE | {"encoder/x": np.ones(5)}}, r"encoder/x is \(5,\) there, \(2,\) here"),
        ({"new": "("}, r"new_parameters is '\(', which is not a regular expression"),
    ],
)
def test_what_differs_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        start(**options)
    assert "\n" not in str(caught.value)


def test_long_lists_are_cut():
    assert first_names(["a", "b", "c", "d"], 3) == "a, b, c and 1 more" and first_names(["a"], 3) == "a"
