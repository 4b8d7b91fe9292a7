"""Part a: the quickstart's base learns easy-VQA by each variant, for the same number of steps on the same records."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from diffusionvl.checkpoints.checkpoint import Checkpoint, save_checkpoint
from diffusionvl.checkpoints.output_folder import output_folder
from diffusionvl.commands.recipe import parse_arguments, recipe_flags
from diffusionvl.data.sources.json_records import write_jsonl
from diffusionvl.training.run import build_trainer
from diffusionvl.training.trainer import BlockDiffusionTrainer
from diffusionvl.translation.translate import translate
from studies.learn.variants import VARIANTS, Variant
from studies.quickstart.contest import Contender, contest
from studies.quickstart.easy_vqa import test_records, train_records

BASE = Path(__file__).parents[2] / "assets" / "easy-vqa-base"
BLOCK_SIZE = 8
WAYS: dict[str, dict[str, Any]] = {
    "denoise": {"decoding": "denoise", "remasking": "low_confidence_dynamic", "confidence_threshold": 0.9},
    "autoregressive": {"decoding": "autoregressive"},
    "speculative": {"decoding": "speculative", "draft_size": BLOCK_SIZE},
}


@dataclass(frozen=True)
class Budget:
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
    "smoke": Budget((1, 2), 2, 1, 4, 4, 2),
    "cpu": Budget((50, 75, 100), 32, 2, 384, 256, 3),
    "long": Budget((50, 100, 150, 200), 32, 2, 384, 256, 3),  # where the better variants end up
    "gpu": Budget((50, 100, 150, 200, 400, 600), 32, 5, 9673, 3000, 5),
}


def prepare(out: Path, budget: Budget) -> None:
    """Writes the records and the two translations, unless they are there."""
    records = out / "data" / "conversations.jsonl"
    if not records.exists():
        drawn = records.parent / "images"
        drawn.mkdir(parents=True, exist_ok=True)
        write_jsonl(train_records(budget.repeats, turns=3, longs=(1, 1), drawn=drawn), records)
    for kind in ("block", "causal"):
        if not (out / kind / "config.json").exists():
            with output_folder(str(out / kind), "translate", [str(BASE)], False) as folder:
                model, processor = translate(str(BASE), block_size=BLOCK_SIZE, clean_attention=kind)
                save_checkpoint(model, processor, folder)


def measure_base(budget: Budget) -> dict[str, float]:
    """What the AR base gets right of the test questions."""
    base = Checkpoint(str(BASE))
    return evaluate([Contender("base", base.model("float32").eval())], base.processor, budget)["base"]


def learn(out: Path, budget: Budget, name: str, seed: int) -> dict[str, Any]:
    """Trains one variant with one seed, which is also that of the order of the records; returns its figures."""
    begin = time.perf_counter()
    variant = VARIANTS[name]
    trainer = build_trainer(*parse_arguments(recipe_flags(recipe(out, budget, variant, seed))))
    curve = Curve(trainer, budget, variant.clean_attention)
    trainer.add_callback(curve)
    trainer.train()
    return {
        "settings": variant.settings,
        "clean_attention": variant.clean_attention,
        "curve": curve.points,
        "total_flos": trainer.state.total_flos,
        "seconds": time.perf_counter() - begin,
    }


def recipe(out: Path, budget: Budget, variant: Variant, seed: int) -> dict[str, Any]:
    """The recipe of one run: the quickstart's, but for the length of the run."""
    return {
        "model": str(out / variant.clean_attention),
        "train_records": [str(out / "data" / "conversations.jsonl")],
        "output_dir": str(out / "unused"),  # nothing is saved
        "save_strategy": "no",
        "per_device_train_batch_size": budget.rows,
        "learning_rate": 1e-3,
        "vision_learning_rate": 1e-4,
        "warmup_steps": 0.05,
        "max_steps": budget.steps[-1],
        "weighting": "uniform",
        "disable_tqdm": True,
        "seed": seed,
        **variant.settings,
    }


class Curve(TrainerCallback):
    """Evaluates the model after some steps of its training.

    Attributes:
        points: For each evaluation the step, and for each way of decoding the share of short and of long questions
            that are answered exactly, and the forwards per token of the long ones.
    """

    def __init__(self, trainer: BlockDiffusionTrainer, budget: Budget, clean_attention: str) -> None:
        self.trainer, self.budget = trainer, budget
        self.causal = clean_attention == "causal"
        self.processor = Checkpoint(str(trainer.model.config._name_or_path)).processor
        self.points: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates after the steps of the budget."""
        if state.global_step in self.budget.steps:
            last = state.global_step == self.budget.steps[-1]
            ways = ["denoise", "autoregressive", "speculative"] if last and self.causal else ["denoise"]
            model = self.trainer.model.eval()
            with self.trainer.metrics.paused():
                found = evaluate([Contender(way, model, WAYS[way]) for way in ways], self.processor, self.budget)
            model.train()
            self.points.append({"step": state.global_step, **found})
            print(self.points[-1], flush=True)


def evaluate(contenders: Sequence[Contender], processor: Any, budget: Budget) -> dict[str, Any]:
    """What each contender gets right of the test questions, and its forwards per token on the long ones."""
    kinds = [test_records(kind, count) for kind, count in (("short", budget.short), ("long", budget.long))]
    short, long = (contest(contenders, processor, records, batch_size=128) for records in kinds)
    return {
        one.name: {
            "short": one.accuracy,
            "long": other.accuracy,
            "forwards_per_token": other.cost.forwards_per_token,
        }
        for one, other in zip(short, long, strict=True)
    }
