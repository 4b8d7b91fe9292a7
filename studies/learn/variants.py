"""The variants of training that are compared: the baseline of each part, and what each variant changes in it."""

from typing import Any, NamedTuple


class Variant(NamedTuple):
    """One way of training.

    Attributes:
        settings: Keys of the recipe that differ from the baseline's.
        clean_attention: What clean tokens see, of `diffusionvl translate`.
    """

    settings: dict[str, Any]
    clean_attention: str = "block"


BASELINE = "baseline"
VARIANTS = {
    BASELINE: Variant({}),
    "causal": Variant({}, "causal"),
    "causal, AR 0.5": Variant({"ar_weight": 0.5}, "causal"),
    "causal, AR 1": Variant({"ar_weight": 1.0}, "causal"),
    "growth": Variant({"block_growth": [1, 4, 8], "growth_steps": [0.2, 0.3]}),
    "random size": Variant({"random_block_size": True}),
    "certainty": Variant({"certainty_weight": 1.0}),
    "own states": Variant({"own_states": True}),
    "slope": Variant({"mask_slope": 1.0}),
    "causal, AR 1, own states": Variant({"ar_weight": 1.0, "own_states": True}, "causal"),
    "causal, AR 1, own states, certainty": Variant(
        {"ar_weight": 1.0, "own_states": True, "certainty_weight": 0.5}, "causal"
    ),
    "clean teacher": Variant({"targets": "teacher", "teacher_top_k": 16, "ar_weight": 1.0}, "causal"),
}


def file_name(variant: str, seed: int) -> str:
    """The name of the file with a run's figures."""
    return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in variant) + f"-{seed}.json"
