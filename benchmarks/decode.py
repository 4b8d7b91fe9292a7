"""Measures what decoding costs: autoregression, the reference's procedure and full diffusion against our engine.

All decode the same prompts with the same weights by the same kernels, in turn, in one process:

    AR          transformers' `generate` with a KV cache; the base itself
    reference   DiffusionVL's own loop: one prompt after another, the LM head on every token, a commit of its own after
                each block (so S + 1 forwards), including the last. A larger batch changes nothing for it, so it is
                measured at the first batch size alone
    full        full diffusion: prompt and answer are one block and run whole in every step, without a cache
    ours        `generate`: rows together, fused commit, the LM head on masked tokens; with causal clean tokens also
                autoregressive (a token a forward) and speculative (masks draft, the clean tokens verify)

A trained model and its base answer questions of easy-VQA, so that dynamic remasking and the quality beside each speed
are real. A random model of a known shape writes answers of fixed lengths, with the static schedule only.

    python -m benchmarks.decode --base assets/easy-vqa-base --model outputs/quickstart/model --shape 135M \\
        --json benchmarks/results/decode.json --chart assets/decode.svg
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from benchmarks.decode_baselines import Answers
from benchmarks.decode_report import Measured, as_line, as_table, draw, summary
from benchmarks.decode_tasks import SHAPES, Batch, Contender, Task, random_task, trained_task
from diffusionvl.commands.command_line import Parser
from diffusionvl.modeling.errors import UserError


@contextmanager
def decoder_clock(base: PreTrainedModel) -> Iterator[list[float]]:
    """Collects in a list the seconds that the base's decoder layers run inside the context."""
    decoder, seconds = base.get_decoder(), [0.0]
    hooks = (
        decoder.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter())),
        decoder.register_forward_hook(lambda *_: seconds.append(time.perf_counter())),
    )
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def run_once(contender: Contender, batch: Batch) -> tuple[Answers, float | None, float]:
    """Returns the answers, the share of the time that the decoder's layers ran, and the peak of memory in MiB."""
    if contender.base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return contender.decode(batch), None, torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew
    start = time.perf_counter()
    with decoder_clock(contender.base) as seconds:
        answers = contender.decode(batch)
    share = sum(seconds) / (time.perf_counter() - start)
    status = Path("/proc/self/status").read_text()
    return answers, share, int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(task: Task, size: int, known: Sequence[Measured]) -> list[Measured]:
    """Lets the contenders of a task decode its batches in turn.

    Args:
        task: The task.
        size: Number of prompts in a batch.
        known: Measurements so far; contenders that answer one by one are not measured again.
    """
    done = {one.contender: one for one in known if one.task == task.name}
    results = []
    for contender in task.contenders:
        if contender.one_by_one and contender.name in done:
            results.append(replace(done[contender.name], batch=size))
        else:
            results.append(Measured(task.name, contender.name, size))
    going = [pair for pair in zip(results, task.contenders, strict=True) if not pair[0].cost.tokens]
    batches = task.batches(size)
    for number, batch in enumerate(batches):
        for result, contender in going:
            if number == 0 and task.repeats > 1:
                contender.decode(batch)  # warms up
            runs = [run_once(contender, batch) for _ in range(task.repeats)]
            answers, shares, peaks = zip(*runs, strict=True)
            seconds, first = (
                statistics.median(getattr(one.cost, name) for one in answers) for name in ("seconds", "first_seconds")
            )
            result.cost.add(replace(answers[0].cost, seconds=seconds, first_seconds=first))
            if None not in shares:
                result.decoder_seconds = (result.decoder_seconds or 0.0) + seconds * statistics.median(shares)
            result.peak_mib = max(result.peak_mib, *peaks)
            result.ids += answers[0].tokens
    for result in results:
        result.quality = task.judge(result, results)
        print(as_line(result), flush=True)
    return results


def write(results: list[Measured], machine: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes the measurements so far."""
    rows = summary(results)
    if arguments.json:
        arguments.json.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if arguments.chart:
        draw(results, arguments.chart)


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(prog="python -m benchmarks.decode", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", help="AR model that was translated; with --model")
    parser.add_argument("--model", help="its finetuned translation, which answers easy-VQA")
    parser.add_argument("--name", help="of that model in the table; its folder's if left out")
    parser.add_argument("--questions", type=int, default=48, help="of easy-VQA; a multiple of each batch size (48)")
    parser.add_argument("--confidence-threshold", type=float, default=0.9, help="of dynamic remasking (0.9)")
    parser.add_argument("--repeats", type=int, default=2, help="of easy-VQA (2); several warm up, too")
    parser.add_argument("--shape", choices=[*SHAPES], help="also measure a random model of this shape")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="lengths of its answers (64 256)")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="of its prompts (128)")
    parser.add_argument("--block-size", type=int, default=8, help="of its blocks (8)")
    parser.add_argument("--causal", action="store_true", help="random models can decode autoregressively and by drafts")
    parser.add_argument("--repeats-random", type=int, default=1, help="of its answers (1)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="batch sizes (1 4 16)")
    parser.add_argument("--full-steps", type=int, default=4, help="steps of full diffusion that are run (4)")
    parser.add_argument("--device", help="such as cpu or cuda:0; cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of all models (float32)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--chart", type=Path, help="draw them here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures all tasks at all batch sizes.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    return build_parser().run(_measure_all, argv)


def _measure_all(arguments: argparse.Namespace) -> None:
    if bool(arguments.base) != bool(arguments.model) or not (arguments.model or arguments.shape):
        raise UserError("give --base and --model, or --shape, or all three")
    if any(size < 1 or arguments.questions % size for size in arguments.batches):
        raise UserError(f"--questions {arguments.questions} is not a multiple of each of --batches {arguments.batches}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    machine = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": arguments.dtype,
        "load_before": os.getloadavg()[0],
    }
    builders = [partial(trained_task, arguments)] if arguments.model else []
    builders += [partial(random_task, arguments, tokens) for tokens in arguments.tokens if arguments.shape]
    results: list[Measured] = []
    with torch.no_grad():
        for build in builders:
            task = build()
            for size in arguments.batches:
                results += measure(task, size, results)
                write(results, machine, arguments)
    print(as_table(summary(results)))


if __name__ == "__main__":
    sys.exit(main())
