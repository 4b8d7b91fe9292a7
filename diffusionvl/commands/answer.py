"""`diffusionvl answer RECORDS --model DIR --out answers.jsonl`: answers a file of records, and scores the answers."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ..modeling.errors import UserError
from .command_line import Parser
from .model_flags import add_model_flags, check_model_path, given_settings

if TYPE_CHECKING:
    from ..data.record import Record, Records
    from ..evaluation.answer_file import AnswerFile
    from ..evaluation.answerer import Answerer, Question

SCORES = ("exact_match", "token_f1")


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(
        prog="diffusionvl answer",
        description="Answer a file of records. The last turn of a record is its expected answer, if it is the "
        "assistant's; the turns before it are the prompt. Run again, it continues where it was stopped.",
    )
    parser.add_argument("records", nargs="+", metavar="RECORDS", help="records as `train` reads them")
    parser.add_argument("--model", required=True, help="checkpoint, block diffusion or AR: a folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file of answers, .jsonl")
    parser.add_argument("--image-root", metavar="DIR", help="folder that image paths start from")
    parser.add_argument("--allow-web", action="store_true", help="fetch pictures that are given by a web address")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="answers decoded together (16)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N records only")
    parser.add_argument("--overwrite", action="store_true", help="replace answers to something else")
    add_model_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Answers records.

    Returns:
        0; 1 if some could not be answered; 2 for an input that cannot be used.
    """
    return build_parser().run(_answer, argv)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Checks what can be checked before anything slow.

    Raises:
        UserError: A value cannot be used.
    """
    check_model_path(arguments.model)
    for name in ("batch_size", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give 1 or more")
    out: Path = arguments.out
    if out.suffix != ".jsonl":
        raise UserError(f"--out {str(out)!r}: give a file that ends in .jsonl")
    if not out.parent.is_dir():
        raise UserError(f"--out {str(out)!r}: the folder {str(out.parent)!r} does not exist; make it first")
    for path in map(Path, arguments.records):
        for written in (out, out.with_suffix(".json")):
            if path.exists() and written.exists() and path.samefile(written):
                raise UserError(f"--out {str(out)!r}: would replace the records {str(path)!r}; give another name")


def _answer(arguments: argparse.Namespace) -> int:
    """Checks, loads, answers and scores."""
    check_arguments(arguments)
    given = given_settings(arguments)
    from transformers.utils import logging

    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.loading import find_device
    from ..data.sources.records import read_records
    from ..evaluation.answer_file import AnswerFile
    from ..evaluation.answerer import Answerer, Question
    from ..evaluation.kinds import files_state
    from ..evaluation.questions import Prompt
    from ..evaluation.settings import plain_decoding

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = find_device(arguments.device)
    checkpoint = Checkpoint(arguments.model, arguments.trust_remote_code)
    records = read_records(arguments.records, arguments.image_root, allow_web=arguments.allow_web, answered=False)
    count = min(len(records), arguments.limit or len(records))
    asked = {
        "records": [[str(Path(path).resolve()), *files_state(Path(path))] for path in arguments.records],
        "count": count,
        "model": arguments.model,
        "files": files_state(Path(arguments.model)),
        "settings": given,
        "seed": arguments.seed or 0,
        "dtype": arguments.dtype,
    }
    model = checkpoint.model(arguments.dtype).eval().to(device)
    answerer = Answerer(model, checkpoint.processor, seed=arguments.seed or 0)
    decoding = plain_decoding(model, answerer.kind, given)
    file = AnswerFile(arguments.out, asked, arguments.overwrite)
    left = [index for index in range(count) if index not in file.lines]
    if len(left) < count:
        print(f"{count - len(left):,} of {count:,} records are answered already", file=sys.stderr)

    def question(index: int) -> Question:
        return Question("records", index, lambda: Prompt(split(records[index])[0], [], ""))

    if left:
        _answer_all(file, answerer, [question(index) for index in left], decoding, records, arguments.batch_size)
    return _report(file, count)


def split(record: "Record") -> "tuple[Record, str | None]":
    """Splits a record into its prompt and the expected answer, None where its last turn is not the assistant's.

    Raises:
        UserError: The record holds no turn that could be answered.
    """
    *before, last = record.messages
    if last["role"] != "assistant":
        return record, None
    if not before:
        raise UserError(f"{record.name}: holds an answer alone; give the question before it")
    target = "".join(part["text"] for part in last["content"] if part["type"] == "text")
    return replace(record, messages=before), target


def _answer_all(
    file: "AnswerFile", answerer: "Answerer", questions: "list[Question]", decoding: Any, records: "Records", rows: int
) -> None:
    """Answers questions, and writes a line for each as soon as it has ended."""
    from tqdm import tqdm

    from ..evaluation.scores import exact_match, token_f1

    with tqdm(total=len(questions), desc="answering") as bar:
        for place, answer in answerer.answers(questions, decoding, rows):
            index = questions[place].number
            record = records[index]
            line: dict[str, Any] = {"index": index, "record": record.name}
            if isinstance(answer, UserError):
                line["error"] = " ".join(str(answer).split())
            else:
                target = split(record)[1]
                line["answer"] = answer.text
                if target is not None:
                    scores = (exact_match(answer.text, target), token_f1(answer.text, target))
                    line |= {"expected": target, **dict(zip(SCORES, scores, strict=True))}
                cost = answer.cost
                line |= {"tokens": cost.tokens, "forwards": cost.forwards, "seconds": round(cost.seconds, 4)}
            file.add(line)
            bar.update()


def _report(file: "AnswerFile", count: int) -> int:
    """Writes and prints the summary. Returns the exit code."""
    good = [line for line in file.lines.values() if "answer" in line]
    failed = [line for line in file.lines.values() if "error" in line]
    totals = {name: sum(line[name] for line in good) for name in ("tokens", "forwards", "seconds")}
    summary: dict[str, Any] = {"records": count, "answered": len(good), **totals}
    print(f"{len(good):,} answers with {totals['tokens']:,} tokens in {totals['seconds']:,.1f} s of decoding")
    if totals["tokens"]:
        summary["forwards_per_token"] = totals["forwards"] / totals["tokens"]
        print(f"{summary['forwards_per_token']:.3f} forwards per token")
    for name in SCORES:
        values = [line[name] for line in good if name in line]
        if values:
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            summary |= {name: mean(values), f"{name}_stderr": error}
            deviation = "" if error is None else f" ± {100 * error:.2f}"
            print(f"{name.replace('_', ' ')}: {100 * mean(values):.2f}{deviation} % of {len(values):,} records")
    file.finish(summary)
    print(f"wrote {file.path} and {file.summary_path.name}")
    if failed:
        print(f"{len(failed):,} records could not be answered; the first: {failed[0]['error']}", file=sys.stderr)
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
