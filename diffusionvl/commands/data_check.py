"""`diffusionvl data check RECORDS... --model DIR`: what is in a data set, and what training would stop at."""

import argparse
import json
import os
import sys
from pathlib import Path

from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

from ..checkpoints.checkpoint import Checkpoint
from ..data.conversation import SUPERVISIONS, ConversationEncoder
from ..data.images import open_image
from ..data.record import DataError, Picture, Records
from ..data.sources.records import KINDS, read_records
from ..data.streams import IGNORED
from ..modeling.block_masks import CLEAN
from ..training import RowDataset
from .command_line import Parser
from .data_report import Finding, Problem, Report

IMAGE_KINDS = ("missing image", "bad image")


def main(argv: list[str] | None = None) -> int:
    """Checks every record as training reads it, and goes on behind a problem.

    Returns:
        0; 1 where training would stop; 2 for an argument that cannot be used.
    """
    return build_parser().run(_check, argv)


def _check(arguments: argparse.Namespace) -> int:
    checkpoint = Checkpoint(arguments.model, arguments.trust_remote_code)
    processor, config = checkpoint.processor, checkpoint.config
    encoder = ConversationEncoder(processor, arguments.supervision, arguments.max_length)
    opened = [open_or_tell(path, arguments.image_root) for path in arguments.records]
    problems = [each for each in opened if isinstance(each, Problem)]
    records = [each for each in opened if not isinstance(each, Problem)]
    findings = []
    if records:
        checks = Checks(RowDataset(ConcatDataset(records), encoder, config))  # type: ignore[arg-type]
        loader = DataLoader(checks, batch_size=16, num_workers=arguments.workers, collate_fn=list)
        bar = tqdm(total=len(checks), disable=None, unit="record")  # on a terminal only
        for found in loader:
            findings += found
            bar.update(len(found))
        bar.close()
    report = Report(problems, findings)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    print(report.to_text())
    return 1 if report.bad > arguments.max_bad_samples or not report.rows else 0


def build_parser() -> Parser:
    """The parser of `diffusionvl data`."""
    parser = Parser(prog="diffusionvl data", description="Look at records before training on them.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="tell what is in records, and what training would stop at")
    check.add_argument("records", nargs="+", help=f"{KINDS}; or several")
    check.add_argument("--model", required=True, help="checkpoint that is to be trained: a folder or a hub id")
    check.add_argument("--image-root", help="folder that image paths start from; the record file's own")
    check.add_argument("--max-length", type=int, help="longest clean stream in tokens, as in training; none")
    check.add_argument("--supervision", choices=SUPERVISIONS, default="assistant", help="which tokens carry loss")
    check.add_argument(
        "--max-bad-samples", type=int, default=0, help="records that may be unusable, as in training (0)"
    )
    check.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes")
    check.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the model's folder or repository"
    )
    check.add_argument("--json", metavar="FILE", help="also write all of it here")
    return parser


def open_or_tell(path: str, image_root: str | None) -> Records | Problem:
    """The records of a path, or what is wrong with it."""
    try:
        return read_records([path], image_root, check=False)
    except DataError as error:
        return Problem(error.kind, str(error))


def image_problem(image: Picture, name: str) -> Problem | None:
    """What is wrong with an image, if anything."""
    try:
        open_image(image, name)
    except DataError as error:
        return Problem(error.kind, str(error))
    return None


class Checks(Dataset):
    """What becomes of each record."""

    def __init__(self, rows: RowDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Finding:
        try:
            row, truncated = self.rows[index]
        except DataError as error:
            return Finding(self._problems(index, error))
        if row is None:
            return Finding(name=self.rows.records[index].name, truncated=True)
        clean = int((row.stream_ids == CLEAN).sum())
        return Finding([], row.name, clean, len(row), int((row.labels != IGNORED).sum()), truncated)

    def _problems(self, index: int, error: DataError) -> list[Problem]:
        """The problem that came up; of a record with a bad image, those with all its images."""
        if error.kind not in IMAGE_KINDS:
            return [Problem(error.kind, str(error))]
        record = self.rows.records[index]
        found = [problem for image in record.images if (problem := image_problem(image, record.name))]
        return found or [Problem(error.kind, str(error))]  # the processor refused a picture that opens


if __name__ == "__main__":
    sys.exit(main())
