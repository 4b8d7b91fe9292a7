"""`python -m eval.speed MODEL --ar BASE --full-diffusion FULL`: measures speed beside quality.

The protocol behind the paper's 2.0x on DetailCaps (`--suite detailcaps`), or its offline variant on easy-VQA's long
answers (`--suite local-speed`, the default). All models answer the same questions, at equal numbers of tokens a step.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusionvl.commands.command_line import Parser, report_errors, table
from diffusionvl.evaluation import AR
from diffusionvl.modeling.errors import UserError
from eval import run as running
from eval.results import COSTS, RunRecord, read_runs

HEADER = (
    "model",
    "decoding",
    "quality",
    "forwards/token",
    "tokens/s",
    "s to first block",
    "paper's tokens/s",
    "x AR",
    "x full diffusion",
)
SUITES = ("local-speed", "detailcaps")


def build_parser() -> Parser:
    """Builds the parser; flags that it does not know go to eval/run.sh."""
    parser = Parser(
        prog="python -m eval.speed",
        description="Measure speed beside quality. Other flags are those of eval/run.sh.",
    )
    parser.add_argument("model", help="block-diffusion checkpoint")
    parser.add_argument("--ar", required=True, metavar="BASE", help="AR checkpoint to compare with")
    parser.add_argument("--full-diffusion", metavar="FULL", help="checkpoint whose block holds a whole answer")
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0], help=f"({SUITES[0]})")
    parser.add_argument("--out", type=Path, default=Path("outputs/speed"), help="folder (outputs/speed)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the suite with each model, prints the table and writes `speed.json`.

    Returns:
        0; 1 if a run failed; 2 for an input that cannot be used.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    debug = ["--debug"] if vars(arguments).pop("debug", False) else []
    return report_errors(parser.prog, lambda: _measure(arguments, [*rest, *debug]), bool(debug))


def _measure(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs, writes and prints."""
    roles = {"ar": arguments.ar, "block-diffusion": arguments.model, "full-diffusion": arguments.full_diffusion}
    for role, model in roles.items():
        if model is not None:
            flags = [arguments.suite, model, "--name", role, "--out", str(arguments.out), *rest]
            if code := running.main(flags):
                return code
    records = [record for record in read_runs([arguments.out]) if record.suite == arguments.suite]
    check_kinds(records)
    content = [numbers(record, records) for record in records]
    (arguments.out / "speed.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(HEADER, table_rows(content)))
    print(f"wrote {arguments.out / 'speed.json'}; hardware: {records[0].setup['hardware']}")
    return 0


def check_kinds(records: Sequence[RunRecord]) -> None:
    """Checks that each model plays the part that its kind can play.

    Raises:
        UserError: One does not; the message names it.
    """
    for record in records:
        if (record.model == "ar") != (record.kind == AR):
            raise UserError(f"{record.asked['model']} is of kind {record.kind}; it cannot be the {record.model} model")
        room, block_size = record.settings["max_new_tokens"], record.settings.get("block_size")
        if record.model == "full-diffusion" and block_size < room:
            raise UserError(
                f"{record.asked['model']} has blocks of {block_size} tokens and writes up to {room}: this is not full "
                "diffusion; give a checkpoint with larger blocks"
            )


def numbers(record: RunRecord, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Returns the numbers of one run; ratios are those of tokens a second of decoding."""
    speed = record.metrics["tokens_per_second"]
    ar = [other for other in records if other.kind == AR]
    # At equal parallelism, which is the way's name.
    full = [one for one in records if one.model == "full-diffusion" and one.variant == record.variant]
    return {
        "model": record.model,
        "decoding": record.variant,
        "quality": record.metrics[record.main_metric],
        "quality_metric": record.main_metric,
        "forwards_per_token": record.metrics["forwards_per_token"],
        "tokens_per_second": speed,
        "seconds_to_first_block": record.metrics["seconds_to_first_block"],
        "paper_tokens_per_second": record.metrics["paper_tokens_per_second"],
        "times_ar": speed / ar[0].metrics["tokens_per_second"] if ar else None,
        "times_full_diffusion": speed / full[0].metrics["tokens_per_second"] if full else None,
        "costs": {name: record.metrics[name] for name in COSTS if name in record.metrics},
        "samples": record.samples,
        "setup": record.setup,
    }


def table_rows(content: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Writes the numbers as text."""

    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}x"

    return [
        [
            row["model"],
            row["decoding"],
            f"{row['quality']:.4g} {row['quality_metric']}",
            f"{row['forwards_per_token']:.3f}",
            f"{row['tokens_per_second']:,.1f}",
            f"{row['seconds_to_first_block']:.3f}",
            f"{row['paper_tokens_per_second']:,.1f}",
            times(row["times_ar"]),
            times(row["times_full_diffusion"]),
        ]
        for row in content
    ]


if __name__ == "__main__":
    sys.exit(main())
