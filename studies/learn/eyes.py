"""Part b: SmolLM2 with eyes: the paper's tables 5 (block sizes) and 6 (noise), with more steps, and what won in part a.

The AR model that is translated is `scripts/reproduce_smollm2.sh`'s baseline, which is made first.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.commands.recipe import read_recipe
from diffusionvl.modeling.errors import UserError
from studies.learn.curve import run, translated
from studies.learn.easy import asked
from studies.learn.variants import TABLES as VARIANTS
from studies.quickstart.contest import Contender

ROOT = Path(__file__).parents[2]


class Budget(NamedTuple):
    """As of part a."""

    steps: Sequence[int]
    short: int
    long: int
    seeds: int


BUDGETS = {
    "smoke": Budget((1, 2), 4, 4, 1),
    "cpu": Budget((100,), 100, 100, 2),
    "gpu": Budget((200, 500, 1000, 1500), 1000, 1000, 3),
}


def prepare(out: Path, budget: str) -> None:
    """Makes the AR baseline, step by step; what is there is not made again.

    Raises:
        UserError: A step has failed.
    """
    script = ["bash", str(ROOT / "scripts" / "reproduce_smollm2.sh"), "--budget", budget, "--until", "ar"]
    if subprocess.run([*script, "--out", str(out.resolve() / "smollm2")]).returncode:
        raise UserError("scripts/reproduce_smollm2.sh has failed; its message stands above")


def measure_base(out: Path, budget: str) -> dict[str, float]:
    """What the AR baseline gets right of the test questions, in bf16 as its translations."""
    base = Checkpoint(str(out / "smollm2" / "ar"))
    return evaluate([Contender("base", base.model("bfloat16").eval())], base.processor, budget)["base"]


def learn(out: Path, budget: str, name: str, seed: int) -> dict[str, Any]:
    """Trains a variant by the recipe of SmolLM2's translation."""
    own, base = BUDGETS[budget], out / "smollm2" / "ar"
    given = read_recipe(ROOT / "configs" / "recipes" / "smollm2_translate.yaml")
    recipe = given | {
        "model": str(translated(out, base, VARIANTS[name])),
        "train_records": [str(out / "smollm2" / "data" / "conversations.jsonl")],
        "output_dir": str(out / "unused"),
        "dataloader_num_workers": 0,
        "max_steps": own.steps[-1],
        "seed": seed,
    }
    return run(VARIANTS[name], recipe, base, own.steps, lambda ways, processor: evaluate(ways, processor, budget))


def evaluate(ways: Sequence[Contender], processor: Any, budget: str) -> dict[str, Any]:
    """As in part a, with fewer questions."""
    return asked(ways, processor, {"short": BUDGETS[budget].short, "long": BUDGETS[budget].long}, 32)
