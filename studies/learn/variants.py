"""The variants of training that are compared: what each changes in the recipe and in the translation of its part."""

from typing import Any, NamedTuple


class Variant(NamedTuple):
    """One way of training.

    Attributes:
        settings: Keys of the recipe that differ from the baseline's.
        clean_attention: What clean tokens see, of `diffusionvl translate`.
        block_size: D.
    """

    settings: dict[str, Any]
    clean_attention: str = "block"
    block_size: int = 8


BASELINE = "baseline"
TOGETHER = {"ar_weight": 1.0, "own_states": True}
ON_POLICY = {**TOGETHER, "on_policy_from": 0.5, "on_policy_tokens": 64, "teacher_top_k": 16}
EASY = {
    BASELINE: Variant({}),
    "causal": Variant({}, "causal"),
    "causal, AR 0.5": Variant({"ar_weight": 0.5}, "causal"),
    "causal, AR 1": Variant({"ar_weight": 1.0}, "causal"),
    "growth": Variant({"block_growth": [1, 4, 8], "growth_steps": [0.2, 0.3]}),
    "random size": Variant({"random_block_size": True}),
    "certainty": Variant({"certainty_weight": 1.0}),
    "own states": Variant({"own_states": True}),
    "slope": Variant({"mask_slope": 1.0}),
    "clean teacher": Variant({"targets": "teacher", "teacher_top_k": 16, "ar_weight": 1.0}, "causal"),
    "causal, AR 1, own states": Variant(TOGETHER, "causal"),
    "causal, AR 1, own states, certainty": Variant({**TOGETHER, "certainty_weight": 0.5}, "causal"),
    "half on-policy, base as teacher": Variant({**ON_POLICY, "teacher": "BASE"}, "causal"),
    "last quarter on-policy, base": Variant({**ON_POLICY, "teacher": "BASE", "on_policy_from": 0.75}, "causal"),
    "half on-policy, clean teacher": Variant(ON_POLICY, "causal"),
}
# The paper's tables 5 (block sizes) and 6 (noise), whose baseline is D = 8.
TABLES = {
    BASELINE: Variant({}),
    "D = 1": Variant({}, block_size=1),
    "D = 4": Variant({}, block_size=4),
    "D = 16": Variant({}, block_size=16),
    "one level a sequence": Variant({"noise_order": "sequence"}),
    "full diffusion, D = 64": Variant({}, block_size=64),
    "causal": Variant({}, "causal"),
    "causal, AR 0.5": Variant({"ar_weight": 0.5}, "causal"),
    "causal, AR 1": Variant({"ar_weight": 1.0}, "causal"),
    "causal, AR 1, own states": Variant({**TOGETHER, "complementary": False}, "causal"),
}
TEXT = {
    BASELINE: Variant({}),
    "causal, AR 1": Variant({"ar_weight": 1.0}, "causal"),
    "causal, AR 1, own states": Variant({**TOGETHER, "complementary": False}, "causal"),
    "causal, AR 1, a fifth of the rate": Variant({"ar_weight": 1.0, "learning_rate": 1e-4}, "causal"),
    "base as teacher": Variant({"targets": "teacher", "teacher_top_k": 16, "teacher": "BASE"}),
}


def file_name(variant: str, seed: int) -> str:
    """The name of the file with a run's figures."""
    return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in variant) + f"-{seed}.json"
