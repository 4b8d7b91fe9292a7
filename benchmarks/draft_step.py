"""`python -m benchmarks.draft_step DRAFT`: what masks and their adapter add to the cost of a forward.

A step of speculative decoding runs some pending tokens and the masks after them. Forwards of all these sizes are run in
turn over the same cached prompt, with the draft-only adapter and without it; each is compared with the forward of one
token a row, which is an autoregressive step.

Legend: n rows of a forward, p pending tokens of a row, m masks of a row, L tokens of the prompt.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.checkpoints.loading import find_device
from diffusionvl.commands.command_line import Parser, markdown
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration

HEADER = ("dtype", "rows", "pending", "masks", "ms", "without adapter", "against one token", "adapter, ms", "masks")


@dataclass
class Step:
    """The cost of a forward.

    Attributes:
        dtype: Type of the weights.
        rows: n.
        pending: p.
        masks: m.
        plain: Seconds without the adapter, the least of several; on a CPU those that the process computed.
        adapted: The same with the adapter; it acts on masks alone, so it costs nothing where there are none.
    """

    dtype: str
    rows: int
    pending: int
    masks: int
    plain: float = float("inf")
    adapted: float = float("inf")


def step_inputs(model: DiffusionVLForConditionalGeneration, step: Step, prompt: int) -> dict[str, Any]:
    """The inputs of a step after a prompt of L tokens, as the engine gives them."""
    width, device = step.pending + step.masks, model.base.device
    columns = prompt + torch.arange(width, device=device)
    limits = (columns + 1).masked_fill(columns >= prompt + step.pending, prompt + width)
    wanted = [place for place in range(width) if place != step.pending]  # the first mask drafts nothing
    return {
        "input_ids": torch.randint(5, 300, (step.rows, width), device=device),
        "attention_mask": (torch.arange(prompt + width, device=device) < limits[:, None])[None, None],
        "position_ids": columns.expand(1, step.rows, -1),
        "token_indices": (torch.arange(step.rows)[:, None] * width + torch.tensor(wanted)).flatten().to(device),
        "use_cache": True,
    }


@torch.no_grad()
def measure(model: DiffusionVLForConditionalGeneration, steps: list[Step], prompt: int, repeats: int) -> None:
    """Runs all steps in turn, and writes into each the least of its costs."""
    device = model.base.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    ids = torch.randint(5, 300, (max(step.rows for step in steps), prompt), device=device)
    caches: dict[int, DynamicCache] = {}
    for rows in {step.rows for step in steps}:
        caches[rows] = DynamicCache(config=model.base.config)
        model.base(ids[:rows], past_key_values=caches[rows], use_cache=True)

    def seconds(step: Step, adapted: bool) -> float:
        inputs = step_inputs(model, step, prompt)
        streams = (torch.arange(step.pending + step.masks, device=device) >= step.pending).long()
        begin = clock()
        model(
            **inputs,
            past_key_values=caches[step.rows],
            stream_ids=streams.expand(step.rows, -1) if adapted and step.masks else None,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = clock() - begin
        caches[step.rows].crop(-(step.pending + step.masks))
        return took

    for _ in range(repeats):
        for step in steps:
            step.plain = min(step.plain, seconds(step, False))
            step.adapted = min(step.adapted, seconds(step, True))


def table(steps: list[Step]) -> str:
    """Writes the steps as a table in Markdown."""
    lines = []
    for step in steps:
        alike = [one for one in steps if (one.dtype, one.rows) == (step.dtype, step.rows)]
        one = next(one for one in alike if (one.pending, one.masks) == (1, 0))
        unmasked = next(one for one in alike if (one.pending, one.masks) == (step.pending, 0))
        lines.append(
            [
                step.dtype,
                *map(str, (step.rows, step.pending, step.masks)),
                f"{1e3 * step.adapted:.2f}",
                f"{1e3 * step.plain:.2f}",
                f"{step.adapted / one.plain:.2f}x",
                f"{1e3 * (step.adapted - step.plain):.2f}",
                f"+{100 * (step.adapted / unmasked.plain - 1):.0f} %",
            ]
        )
    return markdown(HEADER, lines)


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(prog="python -m benchmarks.draft_step", description=(__doc__ or "").split("`: ")[1].splitlines()[0])
    parser.add_argument("draft", help="draft-only checkpoint: a folder or a hub id")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], metavar="N", help="batch sizes (1 8)")
    parser.add_argument("--pending", type=int, nargs="+", default=[1], metavar="P", help="pending tokens of a row (1)")
    parser.add_argument("--masks", type=int, nargs="+", default=[2, 4, 8], metavar="M", help="of a row (2 4 8)")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["bfloat16", "float32"])
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="L", help="in the cache (64)")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="of which the fastest counts (20)")
    parser.add_argument("--device", help="such as cpu or cuda:0; cuda if there is one, else cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures. Returns 0, or 2 for an input that cannot be used."""
    return build_parser().run(_measure, argv)


def _measure(arguments: argparse.Namespace) -> None:
    """Measures each type of weights, prints a table and writes the figures."""
    if min(arguments.rows + arguments.pending + arguments.masks + [arguments.prompt_tokens, arguments.repeats]) < 1:
        raise UserError("--rows, --pending, --masks, --prompt-tokens and --repeats must be at least 1")
    load, found = os.getloadavg()[0], []
    for dtype in arguments.dtypes:
        model = Checkpoint(arguments.draft).model(dtype).eval().to(find_device(arguments.device))
        if model.config.draft_adapter is None:
            raise UserError(f"{arguments.draft!r} has no draft-only adapter; give a folder of `diffusionvl draft`")
        pending = sorted({1, *arguments.pending})
        steps = [
            Step(dtype, rows, count, masks)
            for rows in arguments.rows
            for count in pending
            for masks in (0, *arguments.masks)
        ]
        measure(model, steps, arguments.prompt_tokens, arguments.repeats)
        found += steps
    print(table(found))
    if arguments.json is not None:
        machine = {
            "date": date.today().isoformat(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load_before": load,
        }
        lines = {**machine, "steps": [asdict(step) for step in found]}
        arguments.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
