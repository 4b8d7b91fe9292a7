"""One run: a variant is trained from its translation, and evaluated after some of its steps."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from diffusionvl.checkpoints.checkpoint import Checkpoint, save_checkpoint
from diffusionvl.checkpoints.output_folder import output_folder
from diffusionvl.commands.recipe import parse_arguments, recipe_flags
from diffusionvl.training.run import build_trainer
from diffusionvl.translation.translate import translate
from studies.learn.variants import Variant
from studies.quickstart.contest import Contender

DYNAMIC = {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.9}
Evaluate = Callable[[Sequence[Contender], Any], dict[str, Any]]  # by the contenders' names; with their processor


def translated(out: Path, base: Path, variant: Variant) -> Path:
    """The translation of an AR model that a variant begins with, made if it is not there."""
    folder = out / f"{variant.clean_attention}_{variant.block_size}"
    if not (folder / "config.json").exists():
        with output_folder(str(folder), "translate", [str(base)], False) as new:
            kinds = {"block_size": variant.block_size, "clean_attention": variant.clean_attention}
            save_checkpoint(*translate(str(base), **kinds), new)  # type: ignore[arg-type]
    return folder


def ways_of(variant: Variant, last: bool) -> dict[str, dict[str, Any]]:
    """How a variant decodes: at the end of its run, also by its clean stream where that is causal."""
    ways: dict[str, dict[str, Any]] = {"denoise": {"decoding": "denoise", **DYNAMIC}}
    if last:
        ways["static"] = {"decoding": "denoise", "remasking": "low_confidence_static"}
    if last and variant.clean_attention == "causal":
        ways["autoregressive"] = {"decoding": "autoregressive"}
        ways["speculative"] = {"decoding": "speculative", "draft_size": variant.block_size}
    return ways


def run(
    variant: Variant, recipe: dict[str, Any], base: Path, steps: Sequence[int], evaluate: Evaluate
) -> dict[str, Any]:
    """Trains a variant, and returns its curve and what it cost.

    Args:
        variant: Its settings win over the recipe's.
        recipe: The baseline's.
        base: The AR model that was translated, which a variant may name as its teacher.
        steps: Optimizer steps after which the model is evaluated, ascending; the last one ends the run.
        evaluate: Asks the model in several ways.
    """
    begin = time.perf_counter()
    settings = {"save_strategy": "no", "disable_tqdm": True, "max_steps": steps[-1], **recipe}
    settings |= {"ar_weight": 0.0, **variant.settings}  # a variant has the AR loss that it names, not the default one
    settings |= {"teacher": str(base)} if "teacher" in variant.settings else {}
    trainer = build_trainer(*parse_arguments(recipe_flags(settings)))
    processor = Checkpoint(recipe["model"]).processor
    points: list[dict[str, Any]] = []

    class Curve(TrainerCallback):
        """Evaluates after the steps that are asked for."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in steps:
                model = trainer.model.eval()
                ways = ways_of(variant, state.global_step == steps[-1])
                with trainer.metrics.paused():
                    found = evaluate([Contender(way, model, own) for way, own in ways.items()], processor)
                model.train()
                points.append({"step": state.global_step, **found})
                print(points[-1], flush=True)

    trainer.add_callback(Curve())
    trainer.train()
    return {
        "settings": variant.settings,
        "clean_attention": variant.clean_attention,
        "block_size": variant.block_size,
        "curve": points,
        "total_flos": trainer.state.total_flos,
        "seconds": time.perf_counter() - begin,
    }
