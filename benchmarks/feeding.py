"""`python -m benchmarks.feeding MODEL`: questions handed to the engine as rows become free, against fixed batches.

Short and long questions of easy-VQA, shuffled, are prepared and answered in both ways in turn. Both must give the same
answers.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin

from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.commands.command_line import Parser, markdown
from diffusionvl.evaluation.decoding import Answered, answer_batch
from diffusionvl.evaluation.feeding import answer_continuously
from diffusionvl.modeling.engine import Engine
from studies.quickstart.contest import prompts
from studies.quickstart.easy_vqa import RawRecord, test_records

SETTINGS = {"max_new_tokens": 96}


def in_batches(model: PreTrainedModel, processor: ProcessorMixin, records: list[RawRecord], rows: int) -> list:
    """Answers the questions in fixed batches, each of which lasts as long as its longest answer."""
    answers = []
    for begin in range(0, len(records), rows):
        found = answer_batch(model, prompts(processor, records[begin : begin + rows]), **SETTINGS)
        answers += [ids[:length].tolist() for ids, length in zip(found.new, found.lengths.tolist(), strict=True)]
    return answers


def as_rows_become_free(model: PreTrainedModel, processor: ProcessorMixin, records: list[RawRecord], rows: int) -> list:
    """Answers the questions continuously, as the lmms-eval plugin and `diffusionvl answer` do."""
    engine = Engine(model, max_batch_size=rows)
    found = answer_continuously(
        engine, range(len(records)), lambda index: {**prompts(processor, [records[index]]), **SETTINGS}
    )
    return [one.tokens for _, one in sorted(found, key=lambda pair: pair[0]) if isinstance(one, Answered)]


def main(argv: list[str] | None = None) -> int:
    """Prints tokens/s of both ways.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m benchmarks.feeding", description="Compare continuous feeding with fixed batches.")
    parser.add_argument("model", help="block-diffusion checkpoint: a folder or a hub id")
    parser.add_argument("--questions", type=int, default=256, help="short and long ones, half and half (256)")
    parser.add_argument("--rows", type=int, default=16, help="answers decoded together (16)")
    parser.add_argument("--pairs", type=int, default=5, help="times that both are measured (5)")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser.run(_measure, argv)


def _measure(arguments: argparse.Namespace) -> None:
    """Measures both ways in turn."""
    model, processor = load_model(arguments.model).eval(), load_processor(arguments.model)
    records = [one for kind in ("short", "long") for one in test_records(kind, arguments.questions // 2)]
    random.Random(0).shuffle(records)
    speeds: dict[str, list[float]] = {}
    for _ in range(arguments.pairs):
        answers = []
        for way in (in_batches, as_rows_become_free):
            begin = time.perf_counter()
            answers.append(way(model, processor, records, arguments.rows))
            seconds = time.perf_counter() - begin
            speeds.setdefault(way.__name__, []).append(sum(map(len, answers[-1])) / seconds)
        if answers[0] != answers[1]:
            raise RuntimeError("the two ways give different answers")
    ratio = statistics.median(new / old for old, new in zip(*speeds.values(), strict=True))
    rows = [(name.replace("_", " "), f"{statistics.median(own):,.0f}") for name, own in speeds.items()]
    print(markdown(("questions are answered", "tokens/s"), rows))
    print(f"\ncontinuously / in batches: {ratio:.2f}x, the median of {arguments.pairs} pairs")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"speeds": speeds, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
