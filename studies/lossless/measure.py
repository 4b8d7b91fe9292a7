"""`python -m studies.lossless.measure BASE DRAFT --out DIR`: compares an AR model's own decoding with drafts for it.

All ways of decoding answer the same questions in turn, batch by batch, in one process: transformers' `generate`, plain
and with prompt lookup; and the engine's autoregressive and speculative decoding, with drafts of several sizes. What is
measured of one stage is written when the stage ends, and a stage that is there is not measured again.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedModel
from transformers.utils import logging

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.checkpoints.loading import find_device
from diffusionvl.commands.command_line import Parser, markdown
from diffusionvl.evaluation import AR, BLOCK_DIFFUSION
from diffusionvl.evaluation.decoding import Generated
from diffusionvl.evaluation.kinds import kind_of
from diffusionvl.modeling.errors import UserError
from studies.quickstart.contest import Contender, Result, contest
from studies.quickstart.easy_vqa import RawRecord, test_records

WARMUP = 2  # questions that are answered first, without being counted
LOOKUP = 10  # tokens that prompt lookup copies from the prompt, the usual number
HEADER = (
    "batch",
    "decoding",
    "equal answers",
    "right",
    "tokens a forward",
    "forwards a token",
    "tokens/s",
    "against AR",
)


@dataclass(frozen=True)
class Row:
    """One way of decoding at one batch size.

    Attributes:
        batch: Number of questions that are answered together.
        name: Name of the way.
        questions: Number of questions.
        equal: Share of answers that are those of the base's own `generate`.
        right: Share of answers that are exactly the expected one.
        tokens: Number of generated tokens.
        forwards: Number of forwards, summed over the rows that took part in them.
        seconds: Time spent decoding: on a CPU with one thread, what the process computed, without what the machine did
            besides.
    """

    batch: int
    name: str
    questions: int
    equal: float
    right: float
    tokens: int
    forwards: float
    seconds: float

    @property
    def speed(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class PromptLookup(Contender):
    """transformers' assisted generation with tokens that are copied from the prompt; of single prompts."""

    def answer(self, inputs: BatchFeature) -> Generated:
        """Answers one prompt, and counts the forwards of the model."""
        with counted_forwards(self.model) as count:
            generated = super().answer(inputs)
        return generated._replace(forwards=torch.tensor(count))


@contextmanager
def counted_forwards(model: PreTrainedModel) -> Iterator[list[int]]:
    """Counts the model's forwards inside the context, in a list of one number."""
    count = [0]

    def increase(*_: Any) -> None:
        count[0] += 1

    handle = model.register_forward_pre_hook(increase)
    try:
        yield count
    finally:
        handle.remove()


def contenders(
    base: PreTrainedModel, draft: PreTrainedModel, denoiser: PreTrainedModel | None, arguments: argparse.Namespace
) -> list[Contender]:
    """Lists the ways of decoding that are compared; the base's own comes first, since the others are compared with it.

    Args:
        base: The AR model.
        draft: The same with a draft-only adapter.
        denoiser: A translation that denoises, or None.
        arguments: Of the command; sizes of drafts, the longest answer, the margin and prompt lookup are read.
    """
    drafts = {f"speculative, {size}": {"draft_size": size} for size in arguments.draft_sizes}
    if arguments.verify_margin:
        margin = {"verify_margin": arguments.verify_margin}
        drafts[f"speculative, margin {arguments.verify_margin:g}"] = {"draft_size": arguments.draft_sizes[-1], **margin}
    own = {"max_new_tokens": arguments.max_new_tokens}
    ways = [Contender("generate", base, own), Contender("autoregressive", draft, {**own, "decoding": "autoregressive"})]
    if arguments.prompt_lookup:
        ways.append(PromptLookup("generate, prompt lookup", base, {**own, "prompt_lookup_num_tokens": LOOKUP}))
    ways += [Contender(name, draft, {**own, "decoding": "speculative", **sizes}) for name, sizes in drafts.items()]
    if denoiser is not None:
        ways.append(Contender("denoise", denoiser, {**own, "decoding": "denoise"}))
    return ways


def draft_size(text: str) -> int | str:
    """Reads the size of a draft: a number of masks, or `auto`."""
    return text if text == "auto" else int(text)


def stage(
    ways: Sequence[Contender], processor: Any, records: Sequence[RawRecord], batch: int, counted: int
) -> list[Row]:
    """Lets all ways answer the records, after a few that only warm up."""
    contest(ways, processor, records[:WARMUP], 1)
    results = contest(ways, processor, records[:counted], batch)
    return [row_of(result, results[0], batch) for result in results]


def row_of(result: Result, base: Result, batch: int) -> Row:
    """Sums up one way of decoding, compared with the base's own."""
    cost, equal = result.cost, result.share_equal(base)
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    seconds, forwards = result.busy if alone else cost.seconds, float(cost.forwards)
    return Row(batch, result.name, cost.answers, equal, result.accuracy, cost.tokens, forwards, seconds)


def table(rows: Sequence[Row]) -> str:
    """Writes the rows as a table in Markdown; speeds relative to the engine's autoregressive decoding."""
    lines = []
    for row in rows:
        plain = next(one for one in rows if (one.batch, one.name) == (row.batch, "autoregressive"))
        lines.append(
            [
                str(row.batch),
                row.name,
                f"{100 * row.equal:.1f} %",
                f"{100 * row.right:.1f} %",
                f"{row.tokens / row.forwards:.2f}",
                f"{row.forwards / row.tokens:.3f}",
                f"{row.speed:,.1f}",
                f"{row.speed / plain.speed:.2f}x",
            ]
        )
    return markdown(HEADER, lines)


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(
        prog="python -m studies.lossless.measure",
        description="Compare an AR model's own decoding with speculative decoding by a draft-only adapter.",
    )
    parser.add_argument("base", help="folder of the AR model")
    parser.add_argument("draft", help="folder of its draft-only adapter")
    parser.add_argument("--out", type=Path, required=True, help="folder for lossless.json and lossless.md")
    parser.add_argument(
        "--records", type=Path, help=".jsonl of questions with answers; easy-VQA's long ones by default"
    )
    parser.add_argument("--questions", type=int, default=200, help="number of questions (200)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="batch sizes (1 4 16)")
    parser.add_argument(
        "--draft-sizes", type=draft_size, nargs="+", default=[4, 8, 16], metavar="K", help="masks, or auto (4 8 16)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=96, metavar="N", help="longest answer (96)")
    parser.add_argument("--verify-margin", type=float, default=0.0, metavar="X", help="also compared with this margin")
    parser.add_argument("--denoiser", help="folder of a translation that denoises, to be compared, too")
    parser.add_argument("--prompt-lookup", action="store_true", help="compare transformers' prompt lookup, at batch 1")
    parser.add_argument("--device", help="such as cpu or cuda:0; cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(float32)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    return build_parser().run(_measure, argv)


def _measure(arguments: argparse.Namespace) -> None:
    """Loads the models, and measures and writes the stages that are missing."""
    sizes = [size for size in arguments.draft_sizes if size != "auto"]
    if min(arguments.questions, arguments.max_new_tokens, *arguments.batches, *sizes) < 1:
        raise UserError("--questions, --max-new-tokens, --batches and --draft-sizes must be at least 1")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.records is None:
        records = test_records("long", arguments.questions)
    else:
        records = [json.loads(line) for line in arguments.records.read_text(encoding="utf-8").splitlines()]
    device = find_device(arguments.device)
    base, draft, denoiser = (
        name and Checkpoint(name).model(arguments.dtype).eval().to(device)
        for name in (arguments.base, arguments.draft, arguments.denoiser)
    )
    for name, model, kind in ((arguments.base, base, AR), (arguments.draft, draft, BLOCK_DIFFUSION)):
        if kind_of(model) != kind:
            raise UserError(f"{name!r} is not the model that is expected there; give an AR model, then its drafts")
    processor = Checkpoint(arguments.draft).processor
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "lossless.json"
    asked = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "batches")}
    found: dict[str, Any] = {**machine(arguments.dtype), "asked": asked, "rows": []}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["asked"] != asked:
            raise UserError(f"{path} holds figures of something else ({found['asked']}); give another --out")
    rows = [Row(**row) for row in found["rows"]]
    for batch in arguments.batches:
        if batch not in [row.batch for row in rows]:
            ways = [
                way
                for way in contenders(base, draft, denoiser, arguments)
                if batch == 1 or not isinstance(way, PromptLookup)
            ]
            rows += stage(ways, processor, records, batch, arguments.questions)
            found["rows"] = [asdict(row) for row in rows]
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(table(rows) + "\n", encoding="utf-8")
    print(f"{table(rows)}\n\nwrote {path} and {path.with_suffix('.md').name}")


def machine(dtype: str) -> dict[str, Any]:
    """Describes when and on what the figures were measured; the load shows how busy the machine was."""
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": dtype,
        "load_before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
