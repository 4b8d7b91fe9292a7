"""`python -m studies.quickstart.comparison BASE TRANSLATED`: compares both models on easy-VQA's test split.

With `--drafts DIR`, the base with a draft-only adapter, which writes what the base writes, is compared, too. The
command writes `report.html`, `results.json` and `film.gif`, and prints the table.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.commands.command_line import Parser
from diffusionvl.data.images import open_image
from diffusionvl.drawing.film import film_html, make_film
from diffusionvl.drawing.film_gif import draw_film
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from diffusionvl.modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from studies.quickstart import easy_vqa
from studies.quickstart.contest import Contender, Result, answer, contest, contest_speed, prompts, question
from studies.quickstart.findings import DecodingRow, Example, Findings, format_table, write_findings

DYNAMIC = "low_confidence_dynamic"
SPEED_RECORDS = 26  # long questions; the first two only warm up
DRAFT_SIZE = 16  # `auto` would draft little in batches of 256, where the cores are busy without drafts
EXAMPLES = 6
FILMED = 8  # answers of which the best film is kept


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="python -m studies.quickstart.comparison",
        description="Compare an AR model with its block-diffusion translation on easy-VQA's test split.",
    )
    parser.add_argument("base", help="folder of the AR model")
    parser.add_argument("translated", help="folder of its finetuned translation")
    parser.add_argument("--drafts", help="folder of the base's draft-only adapter, to be compared, too")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.html, results.json and film.gif")
    parser.add_argument("--limit", type=int, help="N questions of each kind only, spread over the test images")
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
    return build_parser().run(_compare, argv)


def check_values(arguments: argparse.Namespace) -> None:
    """Checks, before anything slow, what would fail after it.

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


def load(base: str, *others: str) -> tuple[PreTrainedModel, ...]:
    """Loads an AR model and block-diffusion ones on the GPU, if there is one, in eval mode.

    Raises:
        UserError: One is of the other kind, broken or missing.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = tuple(load_model(name).eval().to(device) for name in (base, *others))
    kinds = [isinstance(model, DiffusionVLForConditionalGeneration) for model in models]
    if any(kinds[:1]) or not all(kinds[1:]):
        raise UserError(f"give an AR model, then block-diffusion ones, in this order; got {[base, *others]}")
    return models


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the training log that `diffusionvl train` wrote beside the model.

    Raises:
        UserError: There is none, or it is broken.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; give a folder that `diffusionvl train` wrote")
    try:
        log = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        whole = any("loss" in line for line in log) and any("train_runtime" in line for line in log)
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is not the log of a whole training run; train the model again")
    return log


def _compare(arguments: argparse.Namespace) -> None:
    """Evaluates, writes and prints."""
    check_values(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = [arguments.translated] + ([arguments.drafts] if arguments.drafts else [])
    base, translated, *drafts = load(arguments.base, *names)
    log = read_log(Path(arguments.translated, "log.jsonl"))
    processor = load_processor(arguments.translated)
    short, long = (easy_vqa.test_records(kind, arguments.limit) for kind in ("short", "long"))
    dynamic = {"remasking": DYNAMIC, "confidence_threshold": arguments.confidence_threshold}
    contenders = [
        Contender("AR", base),
        Contender("static", translated, {"remasking": "low_confidence_static"}),
        Contender("dynamic", translated, dynamic),
        *(Contender("lossless", model, {"draft_size": DRAFT_SIZE}) for model in drafts),
    ]
    print(f"comparing on {len(short):,} short and {len(long):,} long questions of the official test images", flush=True)
    speeds = contest_speed(contenders, processor, long[:SPEED_RECORDS])
    results = [contest(contenders, processor, records, arguments.batch_size) for records in (short, long)]
    rows = [DecodingRow(*columns) for columns in zip(*results, speeds, strict=True)]
    sweep = [
        Contender(f"{threshold:g}", translated, {"remasking": DYNAMIC, "confidence_threshold": threshold})
        for threshold in arguments.sweep
    ]
    points = dict(zip(arguments.sweep, contest(sweep, processor, long, arguments.batch_size), strict=True))
    points[arguments.confidence_threshold] = results[1][2]
    found = Findings(
        base=Path(arguments.base).name,
        block_size=translated.config.block_size,
        steps=max(line["step"] for line in log),
        seconds=next(line["train_runtime"] for line in log if "train_runtime" in line),
        rows=rows,
        log=log,
        sweep=sorted(points.items()),
        machine=machine(),
        examples=pick(long, results[1][0], results[1][2]) + pick(short, results[0][0], results[0][2]),
        film=_film(translated, processor, long, arguments.out),
    )
    write_findings(arguments.out / "report.html", found)
    (arguments.out / "results.json").write_text(json.dumps(summary(found), indent=1) + "\n", encoding="utf-8")
    print(f"\n{format_table(rows)}\n\nwrote {arguments.out / 'report.html'}, results.json and film.gif")


def _film(
    model: DiffusionVLForConditionalGeneration,
    processor: ProcessorMixin,
    records: Sequence[easy_vqa.RawRecord],
    out: Path,
) -> str:
    """Films the answer, of a few, whose masks are filled least from left to right: `film.gif` in `out`, and as HTML."""
    settings = {"remasking": "low_confidence_static", "denoising_steps": max(model.config.block_size // 2, 1)}
    films = []
    for record in records[:FILMED]:
        inputs = prompts(processor, [record]).to(model.device)
        output: Any = model.generate(**inputs, **settings, return_dict_in_generate=True, output_history=True)
        prompt_length = inputs["input_ids"].shape[1]
        length = output.sequences.shape[1] - prompt_length
        steps = [token.step for token in make_film(output.history, processor.tokenizer, prompt_length, length).tokens]
        early = sum(step < max(steps[:place], default=0) for place, step in enumerate(steps))
        picture = open_image(record["images"][0], record["id"])
        films.append((early, (output.history, processor.tokenizer, prompt_length, picture, question(record), length)))
    _, film = max(films, key=lambda one: one[0])
    draw_film(out / "film.gif", *film)
    return film_html(*film)


def machine() -> dict[str, str]:
    """Describes when and on what the models were compared."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    return {
        "date": date.today().isoformat(),
        "hardware": gpu or f"{platform.machine()} CPU with {os.cpu_count()} cores",
        "threads": f"{threads} thread{'s' * (threads > 1)}",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def pick(records: Sequence[easy_vqa.RawRecord], base: Result, translated: Result) -> list[Example]:
    """Picks questions for the page: first some that the two models do not both get right, then a spread of all."""
    spread = range(0, len(records), max(len(records) // EXAMPLES, 1))
    missed = [index for index, pair in enumerate(zip(base.correct, translated.correct, strict=True)) if not all(pair)]
    chosen = [*missed[:2], *(index for index in spread if index not in missed[:2])][:EXAMPLES]
    return [
        Example(
            open_image(records[index]["images"][0], records[index]["id"]),
            question(records[index]),
            answer(records[index]),
            base.answers[index],
            translated.answers[index],
        )
        for index in chosen
    ]


def summary(found: Findings) -> dict[str, Any]:
    """Returns the page's numbers, for other programs."""
    rows = {
        row.short.name: {
            "short_accuracy": row.short.accuracy,
            "long_exact_match": row.long.accuracy,
            "long_equal_to_ar": row.long.share_equal(found.rows[0].long),
            "short_forwards_per_token": row.short.cost.forwards_per_token,
            "long_forwards_per_token": row.long.cost.forwards_per_token,
            "tokens_per_second_batch_1": row.speed,
            "tokens_per_second_batched": row.long.cost.tokens_per_second,
        }
        for row in found.rows
    }
    sweep = [
        {
            "threshold": threshold,
            "long_exact_match": point.accuracy,
            "forwards_per_token": point.cost.forwards_per_token,
        }
        for threshold, point in found.sweep
    ]
    counts = {"short": len(found.rows[0].short.correct), "long": len(found.rows[0].long.correct)}
    return {
        **found.machine,
        "block_size": found.block_size,
        "steps": found.steps,
        "train_seconds": found.seconds,
        "questions": counts,
        "decoding": rows,
        "sweep": sweep,
    }


if __name__ == "__main__":
    sys.exit(main())
