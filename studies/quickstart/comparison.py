"""`python -m studies.quickstart.comparison BASE TRANSLATED`: both models on easy-VQA's test split, side by side.

Writes `report.html`, `results.json` and `film.gif`, and prints the table.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.commands.command_line import Parser, fail
from diffusionvl.data.images import open_image
from diffusionvl.drawing.film import film_html
from diffusionvl.drawing.film_gif import draw_film
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from diffusionvl.modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from studies.quickstart import easy_vqa
from studies.quickstart.contest import Contender, Result, answer, compare, compare_speed, encode, evaluate, question
from studies.quickstart.report import Report, Row, Sample, format_table, write_report

DYNAMIC = "low_confidence_dynamic"
SPEED_RECORDS = 26  # of the long ones; the first two only warm up
SAMPLES = 6


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="python -m studies.quickstart.comparison",
        description="Compare an AR model with its block-diffusion translation on easy-VQA's test split.",
    )
    parser.add_argument("base", help="folder of the AR model")
    parser.add_argument("translated", help="folder of its finetuned translation")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.html, results.json and film.gif")
    parser.add_argument("--limit", type=int, help="first N questions of each kind only")
    parser.add_argument("--batch-size", type=int, default=256, help="questions answered together (256)")
    parser.add_argument("--confidence-threshold", type=float, default=0.9, help="of dynamic remasking (0.9)")
    parser.add_argument(
        "--sweep", type=float, nargs="+", default=[0.5, 0.99, 0.999], metavar="P", help="more thresholds for the chart"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Compares, prints the table and writes the report.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        check_values(arguments)
        base, translated = load_pair(arguments.base, arguments.translated)
        log = read_log(Path(arguments.translated, "log.jsonl"))
        _run(arguments, base, translated, load_processor(arguments.translated), log)
    except (OSError, ValueError, ImportError) as error:
        return fail(parser.prog, error)
    return 0


def check_values(arguments: argparse.Namespace) -> None:
    """Checks, before anything slow, what would fail behind it.

    Raises:
        UserError: A flag has a value out of its range, or `--out` cannot be a folder.
    """
    for threshold in (arguments.confidence_threshold, *arguments.sweep):
        DiffusionVLGenerationConfig(confidence_threshold=threshold)
    for name in ("batch_size", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {str(arguments.out)!r} cannot be made ({error.strerror})") from error


def load_pair(base: str, translated: str) -> tuple[PreTrainedModel, DiffusionVLForConditionalGeneration]:
    """Loads both models on the GPU, if there is one, in eval mode.

    Raises:
        UserError: One is of the other kind, broken or missing.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [load_model(name).eval().to(device) for name in (base, translated)]
    kinds = [isinstance(model, DiffusionVLForConditionalGeneration) for model in models]
    if kinds != [False, True]:
        raise UserError(f"give an AR model and a block-diffusion one, in this order; got {base!r} and {translated!r}")
    return models[0], models[1]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The training log that `diffusionvl.train` wrote beside the model.

    Raises:
        UserError: There is none, or it is broken.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; give a folder that `python -m diffusionvl.train` wrote")
    try:
        log = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        whole = any("loss" in line for line in log) and any("train_runtime" in line for line in log)
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is no log of a whole training run; train the model again")
    return log


def _run(
    arguments: argparse.Namespace,
    base: PreTrainedModel,
    translated: DiffusionVLForConditionalGeneration,
    processor: ProcessorMixin,
    log: list[dict[str, Any]],
) -> None:
    """Evaluates, writes and prints."""
    short, long = (easy_vqa.test_records(kind, arguments.limit) for kind in ("short", "long"))
    dynamic = {"remasking": DYNAMIC, "confidence_threshold": arguments.confidence_threshold}
    contenders = [
        Contender("AR", base),
        Contender("static", translated, {"remasking": "low_confidence_static"}),
        Contender("dynamic", translated, dynamic),
    ]
    print(f"comparing on {len(short):,} short and {len(long):,} long questions of the official test images", flush=True)
    speeds = compare_speed(contenders, processor, long[:SPEED_RECORDS])
    results = [compare(contenders, processor, records, arguments.batch_size) for records in (short, long)]
    rows = [Row(*columns) for columns in zip(*results, speeds, strict=True)]
    points = {
        threshold: evaluate(
            translated, processor, long, arguments.batch_size, remasking=DYNAMIC, confidence_threshold=threshold
        )
        for threshold in arguments.sweep
    }
    points[arguments.confidence_threshold] = results[1][2]
    report = Report(
        base=Path(arguments.base).name,
        block_size=translated.config.block_size,
        steps=max(line["step"] for line in log),
        seconds=next(line["train_runtime"] for line in log if "train_runtime" in line),
        rows=rows,
        log=log,
        sweep=sorted(points.items()),
        samples=pick_samples(long, results[1][0], results[1][2]) + pick_samples(short, results[0][0], results[0][2]),
        film=_film(translated, processor, long[0], dynamic, arguments.out),
    )
    write_report(arguments.out / "report.html", report)
    (arguments.out / "results.json").write_text(json.dumps(summary(report), indent=1) + "\n", encoding="utf-8")
    print(f"\n{format_table(rows)}\n\nwrote {arguments.out / 'report.html'}, results.json and film.gif")


def _film(
    model: DiffusionVLForConditionalGeneration,
    processor: ProcessorMixin,
    record: easy_vqa.Record,
    settings: dict[str, Any],
    out: Path,
) -> str:
    """Denoises one answer: `film.gif` in `out`, and the film as HTML."""
    inputs = encode(processor, [record]).to(model.device)
    output: Any = model.generate(**inputs, **settings, return_dict_in_generate=True, output_history=True)
    prompt_length = inputs["input_ids"].shape[1]
    film = (
        output.history,
        processor.tokenizer,
        prompt_length,
        open_image(record["images"][0], record["id"]),
        question(record),
        output.sequences.shape[1] - prompt_length,
    )
    draw_film(out / "film.gif", *film)
    return film_html(*film)


def pick_samples(records: Sequence[easy_vqa.Record], base: Result, translated: Result) -> list[Sample]:
    """Questions for the report: spread over the records, and first those that the two models do not both get right."""
    spread = range(0, len(records), max(len(records) // SAMPLES, 1))
    missed = [index for index, pair in enumerate(zip(base.correct, translated.correct, strict=True)) if not all(pair)]
    chosen = [*missed[:2], *(index for index in spread if index not in missed[:2])][:SAMPLES]
    return [
        Sample(
            open_image(records[index]["images"][0], records[index]["id"]),
            question(records[index]),
            answer(records[index]),
            base.answers[index],
            translated.answers[index],
        )
        for index in chosen
    ]


def summary(report: Report) -> dict[str, Any]:
    """The report's numbers, for other programs."""
    rows = {
        row.short.name: {
            "short_accuracy": row.short.accuracy,
            "long_exact_match": row.long.accuracy,
            "short_forwards_per_token": row.short.forwards_per_token,
            "long_forwards_per_token": row.long.forwards_per_token,
            "tokens_per_second_batch_1": row.speed,
            "tokens_per_second_batched": row.long.tokens_per_second,
        }
        for row in report.rows
    }
    sweep = [
        {"threshold": threshold, "long_exact_match": point.accuracy, "forwards_per_token": point.forwards_per_token}
        for threshold, point in report.sweep
    ]
    counts = {"short": len(report.rows[0].short.correct), "long": len(report.rows[0].long.correct)}
    return {
        "block_size": report.block_size,
        "steps": report.steps,
        "train_seconds": report.seconds,
        "questions": counts,
        "decoding": rows,
        "sweep": sweep,
    }


if __name__ == "__main__":
    sys.exit(main())
