"""What a body may be: everything else is refused with a status and a message that names the place."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.option import Option
from bert_jax.serve.bodies import KINDS, Limits, Refused, parsed, read_call

PARAMETERS = (Option("top_k", int, 5, "tokens", range="[1, 50]"), Option("normalize", bool, True, "length 1"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def call(body, **limits):
    return read_call(body, PARAMETERS, Limits(**limits))


def test_parameters_stand_in_their_object_or_beside_the_inputs():
    assert call({"inputs": "a"}).inputs == ["a"]
    found = call({"inputs": ["a", {"x": 1}], "parameters": {"top_k": 2}, "normalize": False, "model": "m"})
    assert (found.model, found.inputs, found.parameters) == ("m", ["a", {"x": 1}], {"top_k": 2, "normalize": False})
    assert call({"inputs": ["a"]}).parameters == {"top_k": 5, "normalize": True}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (["a"], 422, r'the body is a list; it must be an object such as {"inputs": \["a text"\]}'),
        ({"input": "a"}, 422, '"inputs" is missing'),
        ({"inputs": []}, 422, "is empty; give at least one input"),
        ({"inputs": ["a"] * 5}, 413, "there are 5 inputs; this server takes 4"),
        ({"inputs": "a", "parameters": [1]}, 422, '"parameters" is a list; it must be an object'),
        ({"inputs": "a", "parameters": {"topk": 1}}, 422, r"'topk' is not a parameter.*\(did you mean top_k\?\)"),
        ({"inputs": "a", "top_k": 51}, 422, "parameter top_k is 51; it must be a whole number from 1 to 50"),
        ({"inputs": "a", "top_k": True}, 422, "parameter top_k is True"),
        ({"inputs": "a", "normalize": 1}, 422, "parameter normalize is 1"),
        ({"inputs": "a", "normalize": None}, 422, "parameter normalize is None"),
        ({"inputs": "a", "model": 3}, 422, '"model" is a number'),
        ({"inputs": "a", "\ud800": 3}, 422, r"'\\ud800' is not a parameter"),
    ],
)
def test_what_is_wrong_with_the_whole_body(body, status, message):
    with pytest.raises(Refused, match=message) as refused:
        call(body, inputs=4)
    assert refused.value.status == status
    json.dumps(refused.value.content).encode()


def test_one_wrong_input_is_a_problem_of_its_own():
    found = call({"inputs": ["a", 3, "\ud800", None, {"x": ["\udfff"]}, ["b"], "nul \0 is a character", {}]})
    assert list(found.problems) == [1, 2, 3, 4, 5]
    assert found.problems[1] == "input 1 is a number; it must be a text, or an object with the columns of the task"
    assert found.problems[2] == "input 2 is not Unicode text: it has half of a surrogate pair"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not JSON: Expecting value at character 0"),
        (b'{"inputs": ["a"', "the body is not JSON: Expecting ',' delimiter at character 15"),
        (b'{"inputs": "\0"}', "the body is not JSON: Invalid control character"),
        (b'{"inputs": NaN}', "the body is not JSON: NaN is no number there"),
        (b"\xff\xfe", "the body is not UTF-8 at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 10_000, "a number that is too long"),
    ],
)
def test_what_is_no_json(content, message):
    with pytest.raises(Refused, match=message) as refused:
        parsed(content)
    assert refused.value.status == 400


@settings(max_examples=40)
@given(JSON)
def test_any_json_is_a_call_or_is_refused(value):
    for body in (value, {"inputs": value}, {"inputs": "a", "parameters": value}, {"inputs": [value], "model": value}):
        try:
            found = call(body)
            assert set(found.problems) <= set(range(len(found.inputs)))
        except Refused as refused:
            assert refused.status in KINDS and str(refused)
