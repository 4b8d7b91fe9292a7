"""`diffusionvl data check RECORDS... --model DIR`: what is in a data set, and what training would stop at."""

import argparse
import json
import os
import sys
from pathlib import Path

from ..data.record import SUPERVISIONS
from ..data.sources.files import KINDS
from ..modeling.errors import UserError
from .command_line import Parser
from .data_report import CheckReport, Problem, is_report


def main(argv: list[str] | None = None) -> int:
    """Checks every record as training reads it, and goes on after a problem.

    Returns:
        0; 1 where training would stop; 2 for an argument that cannot be used.
    """
    return build_parser().run(_check, argv)


def _check(arguments: argparse.Namespace) -> int:
    out = Path(arguments.json) if arguments.json else None
    if out is not None and out.exists() and not is_report(out):
        raise UserError(f"--json {str(out)!r}: holds something else than a report of this command; give another file")
    # torch and transformers take seconds to import: they wait until the arguments are known to be good.
    from torch.utils.data import ConcatDataset, DataLoader
    from tqdm import tqdm

    from ..checkpoints.checkpoint import Checkpoint
    from ..data.conversation import ConversationEncoder
    from ..training import RowDataset
    from .record_findings import Checks, open_or_report

    checkpoint = Checkpoint(arguments.model, arguments.trust_remote_code)
    processor, config = checkpoint.processor, checkpoint.config
    encoder = ConversationEncoder(processor, arguments.supervision, arguments.max_length)
    opened = [open_or_report(path, arguments.image_root, arguments.allow_web) for path in arguments.records]
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
    report = CheckReport(problems, findings)
    if out is not None:
        out.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    print(report.to_text().encode(errors="backslashreplace").decode())  # a path may hold what is not UTF-8
    return 1 if report.bad > arguments.max_bad_samples or not report.rows else 0


def build_parser() -> Parser:
    """The parser of `diffusionvl data`."""
    parser = Parser(prog="diffusionvl data", description="Look at records before training on them.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="report what is in records, and what training would stop at")
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
    check.add_argument("--allow-web", action="store_true", help="fetch pictures that are given by a web address")
    check.add_argument("--json", metavar="FILE", help="also write all of it here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
