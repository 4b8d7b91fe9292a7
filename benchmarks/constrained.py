"""What a constraint costs and saves, beside free answers to the same prompts.

Run `python -m benchmarks.constrained --model DIR`. Passes alternate, so that whatever else the machine does slows all
of them alike; figures are medians over the passes. The prompts are easy-VQA's test questions as JSON
(`python -m eval.tasks.make_data`).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from diffusionvl import Engine
from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.commands.command_line import Parser, table
from diffusionvl.data.prompts import encode, question
from diffusionvl.modeling.errors import UserError
from eval.tasks.utils import DATA, score_json
from studies.quickstart.easy_vqa import COLORS, SHAPES

SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": [*SHAPES]}, "color": {"enum": [*COLORS]}, "present": {"type": "boolean"}},
    "required": ["shape", "color", "present"],
    "additionalProperties": False,
}
MODES = {
    "autoregressive": {"decoding": "autoregressive"},
    "speculative": {"decoding": "speculative"},
    "denoise, static": {"decoding": "denoise", "remasking": "low_confidence_static"},
    "denoise, dynamic": {"decoding": "denoise", "remasking": "low_confidence_dynamic", "confidence_threshold": 0.9},
}
CONSTRAINTS = {
    "free": {},
    "schema": {"json_schema": SCHEMA},
    # The same texts with nothing forced but the end: what the bitmasks alone cost.
    "any text": {"regex": r"(.|\n)*"},
}


def build_parser() -> Parser:
    parser = Parser(prog="constrained.py", description="Measure constrained answers beside free ones.")
    parser.add_argument("--model", required=True, help="block-diffusion checkpoint")
    parser.add_argument("--limit", type=int, default=64, metavar="N", help="number of questions (64)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows decoded together (16)")
    parser.add_argument("--passes", type=int, default=5, metavar="N", help="passes of each kind (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser


def answer(model: Any, tokenizer: Any, inputs: list[Any], rows: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Answers all prompts with one engine, and returns texts, tokens, forwards and seconds."""
    engine = Engine(model, rows, 512, len(inputs), tokenizer=tokenizer)
    requests = [engine.add_request(**own, max_new_tokens=64, **settings) for own in inputs]
    start = time.perf_counter()
    while engine.busy:
        engine.step()
    seconds = time.perf_counter() - start
    return {
        "texts": [tokenizer.decode(request.tokens, skip_special_tokens=True) for request in requests],
        "tokens": sum(len(request.tokens) for request in requests),
        "forwards": sum(request.forwards for request in requests),
        "seconds": seconds,
    }


def measure(args: argparse.Namespace) -> None:
    path = DATA / "easy_vqa" / "json.jsonl"
    if not path.exists():
        raise UserError(f"{str(path)!r} does not exist; run python -m eval.tasks.make_data first")
    documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][: args.limit]
    checkpoint = Checkpoint(args.model)
    model, processor = checkpoint.model("float32").eval(), checkpoint.processor
    pictures = [str(DATA / "easy_vqa" / document["image"]) for document in documents]
    asked = zip(documents, pictures, strict=True)
    inputs = [encode(processor, [question(document["question"], [picture])]) for document, picture in asked]
    modes = MODES if model.config.clean_attention == "causal" else {k: v for k, v in MODES.items() if "denoise" in k}
    rows, found = [], []
    for mode, settings in modes.items():
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONSTRAINTS}
        for _ in range(args.passes + 1):
            for name, constraint in CONSTRAINTS.items():
                runs[name].append(answer(model, processor.tokenizer, inputs, args.batch_size, settings | constraint))
        for name, passes in runs.items():
            last = passes[-1]
            scores = [score_json(*pair) for pair in zip(documents, ([text] for text in last["texts"]), strict=True)]
            speeds = [one["tokens"] / one["seconds"] for one in passes[1:]]  # the first one warms up
            slower = [
                one["seconds"] / free["seconds"] - 1 for one, free in zip(passes[1:], runs["free"][1:], strict=True)
            ]
            figures = {
                "mode": mode,
                "answers": name,
                "valid": statistics.mean(score["valid"] for score in scores),
                "exact_match": statistics.mean(score["exact_match"] for score in scores),
                "tokens": last["tokens"],
                "forwards_per_token": last["forwards"] / last["tokens"],
                "tokens_per_second": statistics.median(speeds),
                "extra_time": statistics.median(slower),
            }
            found.append(figures)
            rows.append(
                [
                    f"{mode}: {name}",
                    *(f"{100 * figures[key]:.1f}" for key in ("valid", "exact_match")),
                    str(figures["tokens"]),
                    f"{figures['forwards_per_token']:.3f}",
                    f"{figures['tokens_per_second']:.0f}",
                    f"{100 * figures['extra_time']:+.1f}",
                ]
            )
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(["", "valid %", "exact %", "tokens", "forwards/token", "tokens/s", "time beside free, %"], rows))
    if args.json:
        facts = {"model": args.model, "questions": len(documents), "batch_size": args.batch_size, "results": found}
        args.json.write_text(
            json.dumps(facts | {"threads": torch.get_num_threads()}, indent=2) + "\n", encoding="utf-8"
        )


def main(argv: list[str] | None = None) -> int:
    return build_parser().run(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
