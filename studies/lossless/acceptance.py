"""`python -m studies.lossless.acceptance DRAFT --records R --out FILE`: where drafts are right, and what follows.

A draft is made from every token of every answer, all in one forward an answer, and compared with the answer: a model's
own greedy answer, which speculative decoding would write. That gives the number of right drafts after each token, and
with it the steps that decoding takes, whatever comes after a rejection, without decoding anything.

Legend: R tokens of an answer, K masks.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.commands.command_line import Parser, markdown
from diffusionvl.commands.draft import own_answers
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.record import Record
from diffusionvl.data.sources.records import read_records
from diffusionvl.data.streams import IGNORED
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.modeling_diffusionvl import DiffusionVLForConditionalGeneration
from diffusionvl.training.dataset import RowDataset


@dataclass(frozen=True)
class Steps:
    """What decoding some answers takes.

    Attributes:
        masks: K, the size of a draft.
        after_rejection: Whether masks stand after each pending token, so that a rejection leaves drafts, too.
        tokens: Number of tokens that are written.
        forwards: Number of forwards, the prompts' included.
        run: Number of tokens that these forwards run, the prompts' left out.
    """

    masks: int
    after_rejection: bool
    tokens: int
    forwards: int
    run: int

    @property
    def tokens_a_forward(self) -> float:
        """Number of tokens that a forward writes on average."""
        return self.tokens / self.forwards


def decode(right: Sequence[int], masks: int, after_rejection: bool) -> tuple[int, int]:
    """Counts the forwards that an answer takes, and the tokens that they run.

    Args:
        right: Number of right drafts of each block of masks that begins at a token of the answer [R]; the first mask
            of a block drafts nothing.
        masks: K.
        after_rejection: As of `Steps`.
    """
    length, forwards, run = len(right), 1, 0
    written, drafts = 1, masks - 1  # the prompt's forward writes a token and leaves drafts
    begin = 0  # where the block of masks began that made them
    while written < length:
        groups = 1 + drafts if after_rejection else 1
        run += 1 + drafts + groups * masks
        forwards += 1
        accepted = min(right[begin], drafts) if drafts else 0
        rejected = accepted < drafts
        written += accepted + 1
        begin = written - 1
        drafts = masks - 1 if after_rejection or not rejected else 0
    return forwards, run


def right_drafts(model: DiffusionVLForConditionalGeneration, rows: RowDataset, index: int, masks: int) -> list[int]:
    """Counts the right drafts of a block of K masks at each token of an answer, the first mask left out. [R]"""
    encoded = rows.encoder.encode(rows.records[index])
    assert encoded is not None
    row = rows[index].row
    assert row is not None
    length = len(encoded.input_ids)
    answer = (encoded.labels != IGNORED).nonzero()[:, 0]
    begins = answer.repeat_interleave(masks)
    places = torch.arange(masks).repeat(len(answer))
    positions = row.position_ids[:, :length]
    ids = torch.full_like(begins, model.config.mask_token_id)
    noisy = length + torch.arange(len(begins))
    with torch.no_grad():
        logits = model(
            torch.cat([encoded.input_ids, ids])[None],
            block_ids=torch.cat([row.block_ids[:length], row.block_ids[begins]])[None],
            stream_ids=torch.cat([torch.zeros(length, dtype=torch.long), torch.ones_like(begins)])[None],
            position_ids=torch.cat([positions, positions[:, begins] + places], 1)[:, None],
            token_indices=noisy,
            use_cache=False,
            **row.media,
        ).logits
    found = logits.argmax(-1).view(len(answer), masks)
    return count_right(found, encoded.input_ids[answer])


def count_right(drafts: Tensor, answer: Tensor) -> list[int]:
    """Counts the leading drafts [R, K] that are the answer's tokens [R]; the first of a block is not counted."""
    masks = drafts.shape[1]
    after = torch.nn.functional.pad(answer, (0, masks), value=-1).unfold(0, masks, 1)[: len(answer)]
    same = drafts[:, 1:] == after[:, 1:]
    counted: list[int] = same.long().cumprod(1).sum(1).tolist()
    return counted


def measure(model: DiffusionVLForConditionalGeneration, rows: RowDataset, masks: int) -> dict[str, Any]:
    """Summarizes the drafts of all answers: chances by place, and the steps of all ways to decode."""
    answers = [right_drafts(model, rows, index, masks) for index in range(len(rows))]
    flat = [right for answer in answers for right in answer]
    ways = []
    for size in (size for size in (2, 3, 4, 6, 8, 12, 16) if size <= masks):
        for after in (False, True):
            counts = [decode(answer, size, after) for answer in answers]
            total = sum(map(len, answers))
            ways.append(Steps(size, after, total, *(sum(column) for column in zip(*counts, strict=True))))
    chances = [sum(right > place for right in flat) / len(flat) for place in range(masks - 1)]
    return {"answers": len(answers), "chances": chances, "ways": [asdict(way) for way in ways]}


def costs(model: DiffusionVLForConditionalGeneration, sizes: Sequence[int], repeats: int = 25) -> dict[int, float]:
    """Measures the seconds of the base's forward over this many tokens after 64 others: the least of several in turn.

    What the adapter costs is not in it. The time that this process computes is counted, not what the machine does
    besides, which works on a CPU alone.
    """
    found = dict.fromkeys(sizes, float("inf"))
    ids = torch.randint(5, 300, (1, 64 + max(sizes)))
    with torch.no_grad():
        for _ in range(repeats):
            for size in sizes:
                cache = DynamicCache(config=model.base.config)
                model.base(ids[:, :64], past_key_values=cache, use_cache=True)
                begin = time.process_time()
                model.base(ids[:, 64 : 64 + size], past_key_values=cache, use_cache=True)
                found[size] = min(found[size], time.process_time() - begin)
    return found


def line_of(way: Steps, seconds: dict[int, float]) -> list[str]:
    """A way to decode as a line of the table, with its speed against a token a forward at these costs of forwards."""
    per_token = way.run / way.forwards
    below = max(size for size in seconds if size <= per_token)
    above = min((size for size in seconds if size > per_token), default=below)
    share = (per_token - below) / (above - below) if above > below else 0.0
    cost = seconds[below] + share * (seconds[above] - seconds[below])
    speed = way.tokens_a_forward * seconds[1] / cost
    return [
        str(way.masks),
        "yes" if way.after_rejection else "no",
        f"{way.tokens_a_forward:.2f}",
        f"{way.forwards / way.tokens:.3f}",
        f"{per_token:.1f}",
        f"{speed:.2f}x",
    ]


HEADER = ("masks", "after a rejection", "tokens a forward", "forwards a token", "tokens in a forward", "speed")
SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def held_out(records: Sequence[str], draft: Path, count: int) -> list[Record]:
    """The records that `diffusionvl draft` held out, with its base's answers."""
    file = draft / "work/answers.jsonl"
    asked = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["asked"]
    own = own_answers(read_records(list(records), None, answered=False), file, asked["settings"]["max_new_tokens"])
    return own[:count]


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(
        prog="python -m studies.lossless.acceptance",
        description="Measure where the drafts of `diffusionvl draft` are right, at each checkpoint of its training.",
    )
    parser.add_argument("draft", type=Path, help="folder that `diffusionvl draft` wrote")
    parser.add_argument("--records", nargs="+", required=True, metavar="R", help="the records that it was given")
    parser.add_argument("--held-out", type=int, default=32, metavar="N", help="first records, held out there (32)")
    parser.add_argument("--masks", type=int, default=8, metavar="K", help="longest draft, up to its block size (8)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(float32)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file of figures, .json")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    return build_parser().run(_measure, argv)


def _measure(arguments: argparse.Namespace) -> None:
    """Measures the checkpoints that have not been measured, and prints the last one's table."""
    folders = {int(path.name.split("-")[1]): path for path in (arguments.draft / "work/run").glob("checkpoint-*")}
    if not folders:
        raise UserError(f"{arguments.draft}/work/run holds no checkpoint; run `diffusionvl draft` first")
    found: dict[str, Any] = {"costs": {}, "steps": {}}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))
    records = held_out(arguments.records, arguments.draft, arguments.held_out)
    for step, folder in sorted(folders.items()):
        if str(step) in found["steps"] and found["costs"]:
            continue
        checkpoint = Checkpoint(str(folder))
        model = checkpoint.model(arguments.dtype).eval()
        masks = min(arguments.masks, model.config.block_size)
        rows = RowDataset(records, ConversationEncoder(checkpoint.processor), model.config)
        found["steps"][str(step)] = measure(model, rows, masks)
        if not found["costs"]:
            found["costs"] = {str(size): seconds for size, seconds in costs(model, SIZES).items()}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    seconds = {int(size): value for size, value in found["costs"].items()}
    for step in sorted(map(int, found["steps"])):
        chances = found["steps"][str(step)]["chances"]
        print(f"step {step}: right drafts by place: {', '.join(f'{100 * chance:.1f} %' for chance in chances)}")
    ways = [Steps(**way) for way in found["steps"][str(max(map(int, found["steps"])))]["ways"]]
    print(markdown(HEADER, [line_of(way, seconds) for way in ways]))


if __name__ == "__main__":
    sys.exit(main())
