"""BERTScore of captions as in the paper: rescaled F1 in English against the best reference, averaged over captions.

`python -m eval.bertscore FOLDER` adds it to finished runs. It needs the package bert-score, which is
optional, and its RoBERTa from the hub.
"""

import argparse
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from diffusionvl.commands.command_line import Parser
from diffusionvl.modeling.errors import UserError
from eval.results import RunRecord, read_runs, read_samples, write_run

REMEDY = "pip install bert-score, then python -m eval.bertscore"


def add_bertscore(record: RunRecord) -> RunRecord:
    """Adds BERTScore to the metrics of a run, in per cent, and writes the run.

    Without the package bert-score, the run stays as it was, and a line says so.

    Args:
        record: A run whose targets are lists of references, as JSON.

    Raises:
        OSError: The hub does not provide its RoBERTa.
    """
    if find_spec("bert_score") is None:
        print(f"{record.name}: BERTScore is left out, the package bert-score is missing; {REMEDY} {record.folder}")
        return record
    from bert_score import score

    samples = read_samples(record)
    captions = [sample["filtered_resps"] for sample in samples]
    references = [json.loads(sample["target"]) for sample in samples]
    *_, f1 = score(captions, references, lang="en", rescale_with_baseline=True)  # the best of each one's references
    scored = replace(
        record,
        metrics={**record.metrics, "bertscore": 100 * float(f1.mean())},
        higher_is_better={"bertscore": True, **record.higher_is_better},
    )
    write_run(scored)
    return scored


def main(argv: list[str] | None = None) -> int:
    """Adds BERTScore to the runs of some folders.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m eval.bertscore", description="Add BERTScore to caption runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="folders that eval/run.sh wrote")
    return parser.run(_score, argv)


def _score(arguments: argparse.Namespace) -> None:
    """Scores every caption run of the folders."""
    if find_spec("bert_score") is None:
        raise UserError("the package bert-score is missing; pip install bert-score")
    records = [record for record in read_runs(arguments.folders) if "words" in record.metrics]
    if not records:
        raise UserError("these folders hold no captions; BERTScore is for the suites detailcaps, table-5 and table-7")
    for record in records:
        scored = add_bertscore(record)
        print(f"{record.model} {record.name}: BERTScore {scored.metrics['bertscore']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
