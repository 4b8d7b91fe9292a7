"""Scores of single answers, and answers cut out of generated text."""

import pytest

from diffusionvl.evaluation.answerer import finish
from diffusionvl.evaluation.scores import exact_match, relaxed_match, token_f1


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("55", "55", 1),
        ("52.25", "55", 1),
        ("57.75", "55", 1),
        ("52.2", "55", 0),
        ("57.8", "55", 0),
        ("55%", "0.55", 1),
        ("55%", "55", 0),
        ("-10", "-10.4", 1),
        ("10", "-10", 0),
        ("0", "0", 1),
        ("0.001", "0", 0),
        ("rye", "Rye", 1),
        (" Rye ", "Rye", 1),
        ("Ryes", "Rye", 0),
        ("nan", "55", 0),
        ("inf", "inf", 1),
        ("", "55", 0),
    ],
)
def test_relaxed_match(answer, target, score):
    assert relaxed_match(answer, target) == score


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
