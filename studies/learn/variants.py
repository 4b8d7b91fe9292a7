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


VARIANTS = {
    "baseline": Variant({}),
    "causal": Variant({}, "causal"),
    "causal-ar-0.5": Variant({"ar_weight": 0.5}, "causal"),
    "causal-ar-1": Variant({"ar_weight": 1.0}, "causal"),
}
