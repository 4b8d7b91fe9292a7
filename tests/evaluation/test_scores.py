"""Scores of single answers, and answers cut from generated text."""

import pytest

from diffusionvl.evaluation.answerer import finish
from diffusionvl.evaluation.scores import exact_match, token_f1


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("a b c d", "a b c d", 1),
        ("A b", "a B", 1),
        ("a b", "c d", 0),
        ("a b c", "a", 0.5),
        ("a a", "a b", 0.5),
        ("", "a", 0),
        ("", "", 1),
    ],
)
def test_token_f1(answer, target, score):
    assert token_f1(answer, target) == score
    assert token_f1(target, answer) == score
    assert exact_match(f" {answer}", target) == (answer == target)


@pytest.mark.parametrize(
    ("text", "until", "plain", "reference"),
    [
        (" Yes. ", (), "Yes.", "Yes"),
        ("a..", (), "a..", "a."),
        ("one.\n\ntwo.", (), "one.\n\ntwo.", "one"),
        ("a stop b end", ("end", "stop"), "a", "a"),
        ("a b", ("c",), "a b", "a b"),
    ],
)
def test_finish(text, until, plain, reference):
    assert finish(text, until, "none") == plain
    assert finish(text, until, "reference") == reference
