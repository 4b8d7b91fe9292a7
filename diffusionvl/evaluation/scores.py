"""Scores of single answers: exact match, token F1, and the relaxed accuracy of ChartQA."""

import math
from collections import Counter

TOLERANCE = 0.05


def exact_match(answer: str, target: str) -> float:
    """1 if the answer is the target, white space around it aside."""
    return float(answer.strip() == target.strip())


def token_f1(answer: str, target: str) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it stands there; case is ignored."""
    found, wanted = Counter(answer.lower().split()), Counter(target.lower().split())
    shared = (found & wanted).total()
    if not shared:
        return float(found == wanted)  # both are empty, or nothing is right
    precision, recall = shared / found.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall)


def relaxed_match(answer: str, target: str) -> float:
    """1 if a number is within 5 % of the target, or other text equals it but for case (ChartQA, arXiv 2203.10244).

    A per cent sign divides by 100, on either side. A target of 0 leaves no room, so it must be told exactly.
    """
    number, wanted = _number(answer), _number(target)
    if number is None or wanted is None:
        return float(answer.strip().lower() == target.strip().lower())
    return float(abs(number - wanted) <= TOLERANCE * abs(wanted))


def _number(text: str) -> float | None:
    """The number that a text is, or None."""
    text = text.strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
