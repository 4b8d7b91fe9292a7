"""Part a: the quickstart's base learns easy-VQA by each variant, for the same number of steps on the same records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.data.sources.json_records import write_jsonl
from studies.learn.curve import run, translated
from studies.learn.variants import EASY as VARIANTS
from studies.quickstart.contest import Contender, contest
from studies.quickstart.easy_vqa import test_records, train_records

BASE = Path(__file__).parents[2] / "assets" / "easy-vqa-base"


class Budget(NamedTuple):
    """How much a run may learn, and how closely it is looked at.

    Attributes:
        steps: Optimizer steps at which the model is evaluated, ascending; the last one ends the run.
        rows: Rows of a step.
        repeats: Number of conversations about each of the 4,000 pictures.
        short: Number of short test questions.
        long: Number of long test questions.
        seeds: Number of seeds.
    """

    steps: Sequence[int]
    rows: int
    repeats: int
    short: int
    long: int
    seeds: int


BUDGETS = {
    "smoke": Budget((1, 2), 2, 1, 4, 4, 1),
    "cpu": Budget((50, 75, 100), 32, 2, 384, 256, 3),
    "long": Budget((50, 100, 150, 200), 32, 2, 384, 256, 3),  # where the better variants end up
    "gpu": Budget((50, 100, 150, 200, 400, 600), 32, 5, 9673, 2664, 5),
}


def prepare(out: Path, budget: str) -> None:
    """Writes the records, unless they are there."""
    records = out / "data" / "conversations.jsonl"
    if not records.exists():
        drawn = records.parent / "images"
        drawn.mkdir(parents=True, exist_ok=True)
        write_jsonl(train_records(BUDGETS[budget].repeats, turns=3, longs=(1, 1), drawn=drawn), records)


def measure_base(out: Path, budget: str) -> dict[str, float]:
    """What the AR base gets right of the test questions."""
    base = Checkpoint(str(BASE))
    return evaluate([Contender("base", base.model("float32").eval())], base.processor, budget)["base"]


def learn(out: Path, budget: str, name: str, seed: int) -> dict[str, Any]:
    """Trains a variant with a seed, which is also that of the order of the records, by the quickstart's recipe."""
    own = BUDGETS[budget]
    recipe = {
        "model": str(translated(out, BASE, VARIANTS[name])),
        "train_records": [str(out / "data" / "conversations.jsonl")],
        "output_dir": str(out / "unused"),
        "per_device_train_batch_size": own.rows,
        "learning_rate": 1e-3,
        "vision_learning_rate": 1e-4,
        "warmup_steps": 0.05,
        "weighting": "uniform",
        "seed": seed,
    }
    return run(VARIANTS[name], recipe, BASE, own.steps, lambda ways, processor: evaluate(ways, processor, budget))


def evaluate(ways: Sequence[Contender], processor: Any, budget: str, batch_size: int = 128) -> dict[str, Any]:
    """What each contender gets right of the test questions, and its forwards per token on the long ones."""
    counts = {"short": BUDGETS[budget].short, "long": BUDGETS[budget].long}
    return asked(ways, processor, counts, batch_size)


def asked(ways: Sequence[Contender], processor: Any, counts: dict[str, int], batch_size: int) -> dict[str, Any]:
    """The same for a number of questions of each kind."""
    short, long = (contest(ways, processor, test_records(kind, counts[kind]), batch_size) for kind in counts)
    return {
        one.name: {"short": one.accuracy, "long": two.accuracy, "forwards_per_token": two.cost.forwards_per_token}
        for one, two in zip(short, long, strict=True)
    }
