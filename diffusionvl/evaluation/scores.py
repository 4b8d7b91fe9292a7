"""Scores of single answers: exact match and token F1."""

from collections import Counter


def exact_match(answer: str, target: str) -> float:
    """Returns 1 if the answer equals the target; white space around them does not count."""
    return float(answer.strip() == target.strip())


def token_f1(answer: str, target: str) -> float:
    """Returns the harmonic mean of precision and recall over words; repeated words count, case does not."""
    found, wanted = Counter(answer.lower().split()), Counter(target.lower().split())
    shared = (found & wanted).total()
    if not shared:
        return float(found == wanted)  # both are empty, or they share nothing
    precision, recall = shared / found.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall)
