"""Part c: SmolLM2 on text: how often a translation writes what its base would have written, on prompts held out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.commands.recipe import read_recipe
from diffusionvl.modeling.errors import UserError
from studies.learn.curve import run, translated
from studies.learn.variants import TEXT as VARIANTS
from studies.quickstart.contest import Contender, contest
from studies.smollm2 import own_answers, unpack

RECIPE = Path(__file__).parents[2] / "configs" / "recipes" / "smollm2_text.yaml"


class Budget(NamedTuple):
    """As of part a; `prompts` is the number of prompts to learn from."""

    steps: Sequence[int]
    prompts: int
    held_out: int
    seeds: int


BUDGETS = {
    "smoke": Budget((1, 2), 8, 4, 1),
    "cpu": Budget((100,), 1085, 96, 2),
    "gpu": Budget((500, 1000, 2500), 1085, 161, 3),
}


def prepare(out: Path, budget: str) -> None:
    """Unpacks SmolLM2, and lets it answer the prompts, unless that is done.

    Raises:
        UserError: A step has failed.
    """
    base, data = out / "smollm2", out / "data"
    prompts = str(BUDGETS[budget].prompts)
    for there, make in (
        (base / "config.json", lambda: unpack.main(["--out", str(base)])),
        (data / "held_out.jsonl", lambda: own_answers.main([str(base), "--out", str(data), "--limit", prompts])),
    ):
        if not there.exists() and make():
            raise UserError(f"{there} could not be made; the message stands above")


def measure_base(out: Path, budget: str) -> dict[str, float]:
    """How often the base repeats its own answers in other batches, where bf16 rounds differently: a ceiling."""
    base = Checkpoint(str(out / "smollm2"))
    return evaluate([Contender("base", base.model("bfloat16").eval())], base.processor, out, budget)["base"]


def learn(out: Path, budget: str, name: str, seed: int) -> dict[str, Any]:
    """Trains a variant by the recipe of SmolLM2's translation on text."""
    own, variant, base = BUDGETS[budget], VARIANTS[name], out / "smollm2"
    recipe = read_recipe(RECIPE) | {
        "model": str(translated(out, base, variant)),
        "train_records": [str(out / "data" / "train.jsonl")],
        "output_dir": str(out / "unused"),
        "dataloader_num_workers": 0,
        "max_steps": own.steps[-1],
        "seed": seed,
    }
    return run(variant, recipe, base, own.steps, lambda ways, processor: evaluate(ways, processor, out, budget))


def evaluate(ways: Sequence[Contender], processor: Any, out: Path, budget: str) -> dict[str, Any]:
    """The share of held-out prompts whose answer is the base's, and the forwards per token."""
    lines = (out / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    count = min(BUDGETS[budget].held_out, len(lines))
    records = [json.loads(lines[index * len(lines) // count]) for index in range(count)]
    return {
        one.name: {"agreement": one.accuracy, "forwards_per_token": one.cost.forwards_per_token}
        for one in contest(ways, processor, records, 32)
    }
