"""`python -m studies.smollm2.measure RUN`: measures answers, forwards and speed of every model of a run.

A run is the folder that `scripts/reproduce_smollm2.sh` fills. `ar` and `translation` come from the same aligned model
with the same budget; `block_1`, `block_4`, `block_8`, `block_16`, `full` and `sequence` are translations of `ar`, as
the paper's are of an AR vision-language model; `text` is a translation of `smollm2`, without eyes. Writes
`results.json`, from which `studies.smollm2.figures` draws.
"""

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.commands.command_line import Parser
from diffusionvl.evaluation.scores import token_f1
from studies.quickstart.contest import Contender, answer, contest, contest_speed, way_of
from studies.quickstart.easy_vqa import RawRecord, test_records

STATIC = {"remasking": "low_confidence_static"}
BLOCK_SIZES = (1, 4, 8, 16)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
THRESHOLD = 0.9
BLOCK_SIZE = 8  # of all models that are not named after theirs


def dynamic(threshold: float) -> dict[str, Any]:
    """Returns the settings of dynamic remasking."""
    return {"remasking": "low_confidence_dynamic", "confidence_threshold": threshold}


@dataclass(frozen=True)
class Measurement:
    """What one model did with one kind of questions, under one way of decoding.

    Attributes:
        model: Folder of the run.
        decoding: `ar`, `static` or `dynamic`.
        threshold: Threshold of dynamic remasking.
        kind: `short`, `long` or `text`.
        questions: Number of questions.
        exact_match: Share of answers that are exactly the expected one; for `text`, the base's own.
        token_f1: Mean overlap in words of the answers with the expected ones: it shows how far off wrong answers are.
        forwards_per_token: Forwards that a token took; 1 for AR.
        tokens_per_second: Generated tokens a second at batch size 1; None where it was not timed.
    """

    model: str
    decoding: str
    threshold: float | None
    kind: str
    questions: int
    exact_match: float
    token_f1: float
    forwards_per_token: float
    tokens_per_second: float | None = None


class Key(NamedTuple):
    """The first fields of a `Measurement`, which distinguish it from all others of a run."""

    model: str
    decoding: str
    threshold: float | None
    kind: str


def key_of(one: Contender, kind: str) -> Key:
    """Returns the key of a model's measurement on a kind of questions."""
    decoding = way_of(one.model, one.settings).lower()
    return Key(one.name, decoding, one.settings.get("confidence_threshold"), kind)


class Measures:
    """Measures the models of one run, each loaded once.

    Args:
        run: Folder of the run.
        short: Number of short questions.
        long: Number of long questions.
        few: Most questions of each kind that the models of small budgets answer (tables 5 and 6).
        timed: Number of long questions that are timed, at batch size 1.
        seed: Seed of the draw of questions.
    """

    def __init__(self, run: Path, short: int, long: int, few: int, timed: int, seed: int = 0) -> None:
        self.run = run
        self.few = few
        self.timed = timed
        draw = random.Random(seed)
        self.records: dict[str, list[RawRecord]] = {}
        for kind, count in (("short", short), ("long", long)):
            records = test_records(kind)
            self.records[kind] = draw.sample(records, min(count, len(records)))
        held_out = run / "text_data" / "held_out.jsonl"
        self.records["text"] = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
        self.found: dict[Key, Measurement] = {}

    def contender(self, name: str, settings: dict[str, Any] | None = None) -> Contender:
        """Loads a model of the run in bf16, in which all are measured."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(str(self.run / name), torch.bfloat16).eval().to(device)
        return Contender(name, model, settings or {})

    def measure(self, one: Contender, kinds: tuple[str, ...], few: bool = False, batch_size: int = 32) -> None:
        """Lets a model answer all questions of some kinds, or a few of each."""
        processor = load_processor(str(self.run / one.name))
        for kind in kinds:
            records = self.records[kind][: self.few if few else None]
            (result,) = contest([one], processor, records, batch_size)
            key = key_of(one, kind)
            self.found[key] = Measurement(
                **key._asdict(),
                questions=len(records),
                exact_match=result.accuracy,
                token_f1=mean(
                    token_f1(found, answer(record)) for found, record in zip(result.answers, records, strict=True)
                ),
                forwards_per_token=result.cost.forwards_per_token,
            )
            print(self.found[key], flush=True)

    def time(self, contenders: list[Contender], kind: str) -> None:
        """Times models question by question, in turn, and adds the speeds to their measurements."""
        processor = load_processor(str(self.run / contenders[0].name))
        speeds = contest_speed(contenders, processor, self.records[kind][: self.timed + 2])
        for one, speed in zip(contenders, speeds, strict=True):
            key = key_of(one, kind)
            self.found[key] = replace(self.found[key], tokens_per_second=speed)


def measure_all(measures: Measures) -> None:
    """Measures all models and settings that the tables and charts show."""
    both = ("short", "long")
    timed = [measures.contender("ar")]
    measures.measure(timed[0], both)
    translation = measures.contender("translation").model
    for settings in (STATIC, *map(dynamic, THRESHOLDS)):
        timed.append(Contender("translation", translation, settings))
        measures.measure(timed[-1], both if settings in (STATIC, dynamic(THRESHOLD)) else ("long",))
    for size in BLOCK_SIZES:
        timed.append(measures.contender(f"block_{size}", STATIC))
        measures.measure(timed[-1], both, few=True)
        if size == BLOCK_SIZE:
            timed.append(Contender(timed[-1].name, timed[-1].model, dynamic(THRESHOLD)))
            measures.measure(timed[-1], both, few=True)
    for name in ("full", "sequence"):
        timed.append(measures.contender(name, dynamic(THRESHOLD)))
        measures.measure(timed[-1], both, few=True)
    measures.time(timed, "long")
    text = measures.contender("text").model
    timed = [measures.contender("smollm2"), *(Contender("text", text, one) for one in (STATIC, dynamic(THRESHOLD)))]
    for one in timed:
        measures.measure(one, ("text",))
    measures.time(timed, "text")


def main(argv: list[str] | None = None) -> int:
    """Measures a run.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m studies.smollm2.measure", description="Measure the models of a run.")
    parser.add_argument("run", type=Path, help="folder that scripts/reproduce_smollm2.sh filled")
    parser.add_argument("--short", type=int, default=9673, help="short questions of the official test split (all)")
    parser.add_argument("--long", type=int, default=2664, help="long questions (all)")
    parser.add_argument("--few", type=int, default=2664, help="of each, for the models of tables 5 and 6 (2664)")
    parser.add_argument("--timed", type=int, default=12, help="questions that are timed at batch size 1 (12)")
    return parser.run(_measure, argv)


def _measure(arguments: argparse.Namespace) -> None:
    """Measures and writes `results.json`."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    measures = Measures(arguments.run, arguments.short, arguments.long, arguments.few, arguments.timed)
    measure_all(measures)
    rows = [asdict(found) for found in measures.found.values()]
    (arguments.run / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.run / 'results.json'}")


if __name__ == "__main__":
    sys.exit(main())
