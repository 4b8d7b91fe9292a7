"""`python -m studies.learn --part a --out DIR`: trains variants on equal budgets, and compares what they have learned.

Each run, a variant with a seed, writes its figures when it ends; a run whose figures are there is not made again. So a
study that was stopped goes on where it was, and a part of it can be read while it goes on.
"""

import argparse
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from diffusionvl.commands.command_line import Parser
from diffusionvl.modeling.errors import UserError
from studies.learn import easy, eyes, text
from studies.learn.figures import BASE_FILE
from studies.learn.variants import file_name

PARTS: dict[str, Any] = {"a": easy, "b": eyes, "c": text}
HELP = "a: the quickstart's base on easy-VQA; b: SmolLM2 with eyes, the paper's tables 5 and 6; c: SmolLM2 on text"


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(prog="python -m studies.learn", description="Compare variants of training on equal budgets.")
    parser.add_argument("--part", choices=list(PARTS), required=True, help=HELP)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures, NAME-SEED.json")
    parser.add_argument("--budget", default="cpu", help="smoke, cpu or gpu; long, of part a (cpu)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="those of studies/learn/variants.py (all)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="(as many as the budget has)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Makes the runs that are missing.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    return build_parser().run(_study, argv)


def _study(arguments: argparse.Namespace) -> None:
    """Makes the runs, seed by seed, so that what is there can be compared in pairs."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    part, budget, out = PARTS[arguments.part], arguments.budget, arguments.out
    variants = arguments.variants or list(part.VARIANTS)
    for name, value, known in [("budget", budget, part.BUDGETS), *(("variants", v, part.VARIANTS) for v in variants)]:
        if value not in known:
            raise UserError(f"--{name} {value!r} is not one of part {arguments.part}: {'; '.join(known)}")
    if out.is_file():
        raise UserError(f"--out {out} is a file; give a folder")
    if any(seed < 0 for seed in arguments.seeds or []):
        raise UserError(f"--seeds {arguments.seeds}: give numbers of at least 0")
    marker = out / "budget.json"
    made = {"part": arguments.part, "budget": budget}
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != made:
        raise UserError(f"{out} holds runs of another part or budget; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write(marker, made)
    part.prepare(out, budget)
    if not (out / BASE_FILE).exists():
        write(out / BASE_FILE, part.measure_base(out, budget))
    for seed in arguments.seeds or range(part.BUDGETS[budget].seeds):
        for name in variants:
            path = out / file_name(name, seed)
            if not path.exists():
                print(f"{name}, seed {seed}", flush=True)
                write(path, {"variant": name, "seed": seed, **part.learn(out, budget, name, seed), **machine()})


def write(path: Path, found: dict[str, Any]) -> None:
    """Writes figures, all of them or none."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def machine() -> dict[str, Any]:
    """When and on what a run was made."""
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
