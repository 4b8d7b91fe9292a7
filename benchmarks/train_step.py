"""Measures what a training step costs: the reference's layout, ours, ours packed, and an AR step of the same rows.

All take the same rows through the same random Qwen2.5-VL, forward and backward, in turn, in one process:

    reference   row by row: the whole row twice under a dense mask, the LM head on every noisy token
    ours        row by row: the clean row and a noisy copy of the response, the LM head on masked tokens
    packed      ours, with all rows of a case in one
    AR          row by row: the base under its own causal mask, the LM head on supervised tokens

The same tokens are masked in the first three, whose losses must agree. The language-model part has words where pictures
stand, so that no vision tower runs; the whole step has pictures.

    python -m benchmarks.train_step --json benchmarks/results/train_step.json
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step_contenders import (
    SHAPES,
    Document,
    ar_loss,
    build_batches,
    build_model,
    our_loss,
    reference_loss,
)
from diffusionvl import DiffusionVLForConditionalGeneration
from diffusionvl.commands.command_line import Parser
from diffusionvl.modeling.attention import attend_over_tiles

LANGUAGE, WHOLE = "language model", "whole step"
PARTS = (LANGUAGE, WHOLE)


# LLaVA-NeXT's rows: a picture of 504 x 504 pixels; one in five tiles (anyres); questions and answers without any.
CASES = {
    "324 + 150": [Document(1, 36, 40, 150)],
    "2880 + 150": [Document(5, 48, 40, 150)],
    "324 + 40": [Document(1, 36, 40, 40)],
    "324 + 400": [Document(1, 36, 40, 400)],
    "324 + 40, 150, 400": [Document(1, 36, 40, response) for response in (40, 150, 400)],
    "16 short texts": [Document(0, 0, 24, response) for response in (8, 16, 24, 32)] * 4,
}
TINY_CASES = {  # by the names of the rows that they stand for
    "324 + 150": [Document(1, 8, 8, 16)],
    "2880 + 150": [Document(2, 8, 8, 16)],
    "texts": [Document(0, 0, 8, response) for response in (8, 16, 24)],
}
# What is aimed at, by case, part and ratio.
TARGETS = {
    ("324 + 150", LANGUAGE, "reference / ours"): ">= 1.6",
    ("2880 + 150", LANGUAGE, "reference / ours"): ">= 1.9",
    ("324 + 150", WHOLE, "reference / ours"): ">= 1.3",
    ("2880 + 150", WHOLE, "reference / ours"): ">= 1.7",
    **{(case, WHOLE, "ours / AR"): "<= 1.35" for case in ("324 + 150", "2880 + 150")},
    **{(case, WHOLE, "memory, ours / reference"): "<= 0.6" for case in ("324 + 150", "2880 + 150")},
}


@dataclass
class Measured:
    """One contender on one part of one case.

    Attributes:
        case: Its name.
        part: One of `PARTS`.
        contender: Its name.
        clean_tokens: Tokens of the rows as they come from the data.
        tokens: Tokens that run through the language model.
        tflop: Floating-point operations (1e12) of matrix products and attention, as they are run.
        peak_mib: Memory beyond weights and gradients.
        seconds: Of all rows together; the median.
        rounds: How many times it was measured.
    """

    case: str
    part: str
    contender: str
    clean_tokens: int
    tokens: int
    tflop: float = 0.0
    peak_mib: float = 0.0
    seconds: float = 0.0
    rounds: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Number of clean tokens in a second."""
        return self.clean_tokens / self.seconds


def attention_flops(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    """Counts attention on CPUs, which PyTorch leaves out: two products over [B, H, Q, K]; half of them if causal."""
    batch, heads, queries, channels = query
    return 4 * batch * heads * queries * key[2] * channels // (2 if causal else 1)


def attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, dropout: float, causal: bool, **_: Any
) -> int:
    """Counts those of the backward: five products, since the scores are computed again."""
    return attention_flops(query, key, value, dropout, causal) * 5 // 2


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def peak_mib(run: Callable[[], Any]) -> float:
    """Returns the most memory that a run holds beyond what was held before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed is held, and does not count when it is used again
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before = _resident("VmRSS")
    run()
    return (_resident("VmHWM") - before) / 1024


def _resident(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def clock() -> float:
    """Returns the time in seconds, once nothing is left to do on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    model: DiffusionVLForConditionalGeneration, name: str, case: list[Document], part: str, seconds: float
) -> list[Measured]:
    """Lets contenders take turns at one case, at least once and until the time is up.

    Raises:
        AssertionError: The losses of two layouts differ.
    """
    contenders = {
        "reference": (reference_loss, build_batches(model, case, "two_stream", part == WHOLE)),
        "ours": (our_loss, build_batches(model, case, "response_only", part == WHOLE)),
        "packed": (our_loss, build_batches(model, case, "response_only", part == WHOLE, packed=True)),
        "AR": (ar_loss, build_batches(model, case, "clean", part == WHOLE)),
    }
    if len(case) == 1:
        del contenders["packed"]

    def step(contender: str) -> float:
        """Runs forward and backward of all batches, and returns the sum of their losses."""
        loss_of, batches = contenders[contender]
        total = 0.0
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16) if model.device.type == "cuda" else nullcontext():
                loss = loss_of(model, batch)
            loss.backward()
            total += loss.item()
        model.zero_grad(set_to_none=False)  # as in accumulation, where gradients are there when a step begins
        return total

    clean = sum(batch["input_ids"].numel() for batch in contenders["AR"][1])
    found, losses, times = {}, {}, {contender: [] for contender in contenders}
    for contender, (_, batches) in contenders.items():  # also warms up
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        found[contender] = Measured(name, part, contender, clean, tokens)
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)

        def count(contender: str = contender, counter: FlopCounterMode = counter) -> None:
            with counter:
                losses[contender] = step(contender)

        found[contender].peak_mib = peak_mib(count)
        found[contender].tflop = counter.get_total_flops() / 1e12
    tolerance = 1e-4 if model.device.type == "cpu" else 2e-2
    for contender in contenders.keys() - {"reference", "AR"}:
        torch.testing.assert_close(losses[contender], losses["reference"], rtol=tolerance, atol=0)
    begin = clock()
    while not times["AR"] or clock() - begin < seconds:
        for contender in contenders:
            start = clock()
            step(contender)
            times[contender].append(clock() - start)
    for contender, measured in found.items():
        measured.seconds, measured.rounds = statistics.median(times[contender]), len(times[contender])
    return list(found.values())


def ratios(results: list[Measured]) -> dict[str, float]:
    """Compares what the contenders of one part of one case cost."""
    by_name = {result.contender: result for result in results}
    reference, ours, ar = (by_name[name] for name in ("reference", "ours", "AR"))
    found = {
        "reference / ours": reference.seconds / ours.seconds,
        "reference / ours, TFLOP": reference.tflop / ours.tflop,
        "ours / AR": ours.seconds / ar.seconds,
        "memory, ours / reference": ours.peak_mib / reference.peak_mib,
    }
    if "packed" in by_name:
        found["ours / packed"] = ours.seconds / by_name["packed"].seconds
        found["reference / packed"] = reference.seconds / by_name["packed"].seconds
    return found


def report(results: list[Measured]) -> dict[str, Any]:
    """Prints one part of one case, and returns it for the JSON."""
    case, part = results[0].case, results[0].part
    print(f"\n{case}: {part}, {results[0].clean_tokens} tokens, {results[0].rounds} rounds")
    for result in results:
        print(
            f"  {result.contender:9s} {result.tokens:6d} tokens  {result.tflop:6.3f} TFLOP  {result.seconds:7.3f} s  "
            f"{result.peak_mib:6.0f} MiB  {result.tokens_per_second:6.0f} tokens/s"
        )
    found = ratios(results)
    targets = {ratio: TARGETS[case, part, ratio] for ratio in found if (case, part, ratio) in TARGETS}
    for ratio, value in found.items():
        print(f"  {ratio} = {value:.2f}" + (f", aimed at {targets[ratio]}" if ratio in targets else ""), flush=True)
    contenders = [asdict(result) | {"tokens_per_second": result.tokens_per_second} for result in results]
    return {"case": case, "part": part, "contenders": contenders, "ratios": found, "targets": targets}


def main(argv: list[str] | None = None) -> int:
    """Measures all cases.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m benchmarks.train_step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="of the model (default: 3b on a GPU, small without)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short rows, to see that it runs")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="which to measure (default: all)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=12, help="for the rounds of each part of a case, at least one")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="as the recipes of large models have it")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.run(_measure_all, argv)


def _measure_all(args: argparse.Namespace) -> None:
    """Measures; the JSON is written anew after each part, so that a run that is stopped leaves what it has."""
    on_gpu = torch.cuda.is_available()
    shape = "tiny" if args.tiny else args.shape or ("3b" if on_gpu else "small")
    model = build_model(SHAPES[shape]).to("cuda" if on_gpu else "cpu")
    if on_gpu:
        attend_over_tiles(model.base)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    machine = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "shape": shape,
        "parameters": model.num_parameters(),
        "gradient_checkpointing": args.gradient_checkpointing,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    cases = TINY_CASES if args.tiny else {name: CASES[name] for name in args.cases or CASES}
    measure(model, "", [Document(1, 8, 8, 8)], WHOLE, 0)  # libraries are loaded, gradients are there
    found = []
    for name, case in cases.items():
        for part in args.parts:
            if part == WHOLE and not any(document.pictures for document in case):
                continue
            found.append(report(measure(model, name, case, part, args.seconds)))
            if args.json:
                args.json.write_text(json.dumps({**machine, "results": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
