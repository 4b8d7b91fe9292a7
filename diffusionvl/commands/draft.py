"""`diffusionvl draft BASE --records R --out DIR`: makes an AR model faster, and changes no token."""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..modeling.errors import UserError
from .answer import main as answer
from .answer import split
from .command_line import Parser, markdown, table

if TYPE_CHECKING:
    from ..data.record import Record

LEAST = {
    "block_size": 2,
    "rank": 1,
    "steps": 1,
    "rows": 1,
    "views": 1,
    "checkpoints": 1,
    "held_out": 1,
    "max_new_tokens": 1,
    "answer_batch_size": 1,
    "limit": 2,
}
MODES = ("autoregressive", "speculative")
UNRECORDED = ("out", "answer_batch_size", "trust_remote_code", "debug")  # what a run may change when it goes on


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(
        prog="diffusionvl draft",
        description="Train a draft-only adapter for an autoregressive model: it answers the prompts of the records "
        "itself, learns to draft its own answers, and is measured on prompts that are held out. Its answers stay what "
        "they are, token for token. Run again, the command continues where it was stopped.",
    )
    parser.add_argument("base", metavar="BASE", help="AR checkpoint: a folder or a hub id")
    parser.add_argument("--records", nargs="+", required=True, metavar="R", help="records whose prompts are answered")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the adapter")
    parser.add_argument("--image-root", metavar="DIR", help="folder that image paths start from")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N records only")
    parser.add_argument("--held-out", type=int, default=32, metavar="N", help="first records, kept for measuring (32)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (128)")
    parser.add_argument("--answer-batch-size", type=int, default=16, metavar="N", help="answers written together (16)")
    training = parser.add_argument_group("training")
    training.add_argument("--block-size", type=int, default=16, metavar="K", help="longest draft (16)")
    training.add_argument("--rank", type=int, default=16, metavar="R", help="rank of the adapter's matrices (16)")
    training.add_argument(
        "--layers", nargs="+", metavar="NAME", help="linear layers that get them, such as o_proj (all)"
    )
    training.add_argument("--steps", type=int, default=400, metavar="N", help="optimizer steps (400)")
    training.add_argument("--rows", type=int, default=8, metavar="N", help="answers of a step (8)")
    training.add_argument("--views", type=int, default=2, metavar="N", help="random cuts of each into drafts (2)")
    training.add_argument("--checkpoints", type=int, default=1, metavar="N", help="saved on the way and kept (1)")
    training.add_argument("--learning-rate", type=float, default=3e-3, metavar="X", help="its peak (3e-3)")
    training.add_argument("--targets", choices=["data", "teacher"], default="data", help="as of `train` (data)")
    training.add_argument("--seed", type=int, default=42, metavar="N", help="seed of the training (42)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base (float32)")
    machine.add_argument("--trust-remote-code", action="store_true", help="run code from the base's folder")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Drafts. Returns 0, or 2 for an input that cannot be used."""
    return build_parser().run(draft, argv)


def draft(arguments: argparse.Namespace) -> int:
    """Answers, trains, measures and writes, each where it has not been done."""
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {least} or more")
    from ..checkpoints.output_folder import claim
    from ..data.sources.records import read_records
    from ..training.run import STOPPED, run

    out: Path = arguments.out
    work = out / "work"
    if arguments.layers:
        arguments.layers = sorted({*arguments.layers})
    run_settings = settings(arguments, work)  # what cannot be trained is not answered for first
    claim(str(out), "draft", [arguments.base, *arguments.records])
    work.mkdir(exist_ok=True)
    records = read_records(arguments.records, arguments.image_root, answered=False)
    count = min(len(records), arguments.limit or len(records))
    if count <= arguments.held_out:
        raise UserError(f"--held-out {arguments.held_out} leaves none of {count} records; give fewer, or more records")
    start(arguments, work / "start")
    keep_settings(arguments, work / "settings.json")
    code = ask(arguments, work / "start", work / "answers.jsonl", count, "autoregressive", arguments.answer_batch_size)
    if code:
        return code
    own = own_answers(records, work / "answers.jsonl", arguments.max_new_tokens)[arguments.held_out :]
    code = run(*run_settings, records=own)
    if code == STOPPED:
        return code
    for mode in MODES:  # one prompt at a time, as a user waits for it
        code = ask(arguments, work / "run", work / f"held-out-{mode}.jsonl", arguments.held_out, mode, 1)
        if code:
            return code
    for path in (work / "run").iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
    report(out, work)
    return 0


def keep_settings(arguments: argparse.Namespace, file: Path) -> None:
    """Writes what drafts are made of, or compares it with what an earlier run has written.

    Raises:
        UserError: It differs, and drafts of both cannot be one.
    """
    from ..checkpoints.loading import located

    asked = {name: value for name, value in vars(arguments).items() if name not in UNRECORDED}
    asked |= {"base": located(arguments.base), "records": [located(path) for path in arguments.records]}
    if not file.exists():
        file.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in asked if asked[name] != begun.get(name)]
    if changed:
        names = ", ".join(f"{name} {begun.get(name)!r}, now {asked[name]!r}" for name in changed)
        raise UserError(f"--out {str(arguments.out)!r} holds drafts of other settings ({names}); give another --out")


def start(arguments: argparse.Namespace, folder: Path) -> None:
    """Writes the checkpoint that training starts from: the base with an adapter that changes nothing yet."""
    if (folder / "config.json").exists():  # it is written last
        return
    from ..checkpoints.checkpoint import Checkpoint, save_checkpoint
    from ..checkpoints.output_folder import output_folder
    from ..training.draft import draft_settings
    from ..translation.translate import translate

    translated, processor = translate(
        arguments.base,
        arguments.block_size,
        clean_attention="causal",
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    base = Checkpoint(arguments.base, arguments.trust_remote_code).model(arguments.dtype)
    translated.config.base_config = base.config  # without a row for the mask token, which the adapter has itself
    translated.config.draft_adapter = draft_settings(arguments.base, arguments.rank, layers=arguments.layers)
    model = type(translated)(translated.config, base)
    model.generation_config = translated.generation_config
    with output_folder(str(folder), "draft") as unfinished:
        save_checkpoint(model, processor, unfinished)


def ask(arguments: argparse.Namespace, model: Path, file: Path, limit: int, decoding: str, batch_size: int) -> int:
    """Answers the first records by a model. Returns the exit code."""
    root = ["--image-root", arguments.image_root] if arguments.image_root else []
    flags = {
        "model": model,
        "out": file,
        "limit": limit,
        "decoding": decoding,
        "batch-size": batch_size,
        "max-new-tokens": arguments.max_new_tokens,
        "temperature": 0.0,
        "dtype": arguments.dtype,
    }
    return answer(
        [*arguments.records, *root, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
    )


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of answers."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def own_answers(records: Any, file: Path, longest: int) -> "list[Record]":
    """Records whose last turn is the base's own answer, in their order.

    Args:
        records: The records that were answered.
        file: The answers.
        longest: Number of tokens of the longest answer; one as long as that may have been cut, and does not end.
    """
    found = []
    for line in read_lines(file):
        record = records[line["index"]]
        turn: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": line["answer"]}]}
        if line["tokens"] >= longest:
            turn["unfinished"] = True
        found.append(replace(record, messages=[*split(record)[0].messages, turn]))
    return found


def settings(arguments: argparse.Namespace, work: Path) -> tuple[Any, Any, Any]:
    """The settings of the training run."""
    from ..training.arguments import BlockDiffusionConfig
    from ..training.model_arguments import DataArguments, ModelArguments

    return (
        ModelArguments(str(work / "start"), dtype=arguments.dtype, trust_remote_code=arguments.trust_remote_code),
        DataArguments(arguments.records, image_root=arguments.image_root, noisy_views=arguments.views),
        BlockDiffusionConfig(
            output_dir=str(work / "run"),
            draft=True,
            draft_decay=arguments.block_size / 2,
            random_block_size=True,  # so that drafts of every size are learnt
            targets=arguments.targets,
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.rows,
            learning_rate=arguments.learning_rate,
            warmup_steps=0.1,
            weight_decay=0.0,
            seed=arguments.seed,
            save_steps=max(arguments.steps // (arguments.checkpoints if arguments.checkpoints > 1 else 4), 1),
            save_total_limit=arguments.checkpoints,
            resume_from_checkpoint="last",
            disable_tqdm=False,
        ),
    )


def report(out: Path, work: Path) -> None:
    """Prints what was gained on the prompts that were held out, and adds it to the model card."""
    from ..checkpoints.model_card import CARD

    lines = {mode: read_lines(work / f"held-out-{mode}.jsonl") for mode in MODES}
    pairs = zip(*(lines[mode] for mode in MODES), strict=True)
    same = sum(one["answer"] == other["answer"] for one, other in pairs)
    rows = []
    for mode in MODES:
        tokens, forwards, seconds = (
            sum(line[name] for line in lines[mode]) for name in ("tokens", "forwards", "seconds")
        )
        rows.append([mode, f"{tokens / forwards:.2f}", f"{forwards / tokens:.3f}", f"{tokens / seconds:.1f}"])
    header = ["decoding", "tokens a forward", "forwards a token", "tokens/s"]
    equal = f"{same} of {len(lines[MODES[0]])} answers are equal in both."
    print(table(header, rows))
    print(equal)
    section = [
        "## What was gained",
        "",
        "Held-out prompts, one at a time, on the machine that trained the adapter:",
        "",
        markdown(header, rows),
        "",
        equal,
        "",
    ]
    card = out / CARD
    card.write_text(card.read_text(encoding="utf-8") + "\n" + "\n".join(section), encoding="utf-8")
    print(f"wrote {out}; give it to `diffusionvl infer`, `answer` or `serve` as their model")


if __name__ == "__main__":
    sys.exit(main())
