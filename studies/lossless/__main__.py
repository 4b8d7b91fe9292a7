"""`python -m studies.lossless --part a --out DIR`: a part of the study of lossless decoding, from data to figures.

Part a is the quickstart's base, part b SmolLM2 with eyes, both on easy-VQA; part c is SmolLM2 on open text. A part that
was stopped goes on where it was.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from diffusionvl.cli import main as diffusionvl
from diffusionvl.commands.command_line import Parser
from diffusionvl.data.sources.json_records import write_jsonl
from diffusionvl.modeling.errors import UserError
from studies.lossless import acceptance, curve, measure, prompts
from studies.quickstart.easy_vqa import test_records, train_records
from studies.smollm2.unpack import unpack

ASSETS = Path(__file__).parents[2] / "assets"


@dataclass(frozen=True)
class Run:
    """A training of drafts.

    Attributes:
        rank: Rank of the adapter.
        steps: Number of optimizer steps.
        checkpoints: Number of checkpoints on the way at which drafts are counted.
    """

    rank: int
    steps: int
    checkpoints: int = 1

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"rank{self.rank}-steps{self.steps}"


@dataclass(frozen=True)
class Part:
    """A part of the study.

    Attributes:
        runs: Trainings; the last one is measured.
        draft: Flags of `diffusionvl draft`.
        masks: Longest draft that is counted.
        held_out: Number of prompts on which drafts are counted.
        questions: Number of questions on which ways to decode are compared.
        dtype: Type of the weights in training; answers are compared in fp32, too.
        sizes: Draft sizes that are compared.
        batches: Batch sizes.
        lookup: Whether prompt lookup is compared, which is for text alone.
    """

    runs: tuple[Run, ...]
    draft: dict[str, object]
    masks: int
    held_out: int
    questions: int
    dtype: str
    sizes: tuple[str, ...]
    batches: tuple[int, ...]
    lookup: bool = False


SMALL_RUNS = (Run(4, 200), Run(64, 200), Run(16, 50), Run(16, 100), Run(16, 200), Run(16, 400))
EASY = {"--limit": 800, "--max-new-tokens": 96, "--answer-batch-size": 64, "--block-size": 16}
PARTS = {
    "a": Part(SMALL_RUNS, {**EASY, "--learning-rate": 5e-3}, 16, 32, 96, "float32", ("8", "16", "auto"), (1, 4, 16)),
    "b": Part(
        (Run(16, 180, 3),),
        {**EASY, "--limit": 600, "--learning-rate": 2e-3, "--rows": 4, "--views": 2},
        16,
        32,
        32,
        "bfloat16",
        ("8", "16", "auto"),
        (1, 4, 16),
    ),
    "c": Part(
        (Run(64, 360, 6),),
        {
            "--limit": 2000,
            "--max-new-tokens": 48,
            "--answer-batch-size": 64,
            "--block-size": 4,
            "--layers": ("o_proj", "down_proj"),
            "--learning-rate": 2e-3,
            "--rows": 2,
            "--views": 4,
        },
        4,
        64,
        48,
        "bfloat16",
        ("2", "3", "4", "auto"),
        (1, 4, 16),
        lookup=True,
    ),
}
SMOKE = {"--limit": 8, "--max-new-tokens": 8, "--rows": 2, "--views": 2}


def sources(part: str, base: str | None, out: Path, count: int) -> tuple[str, Path, Path]:
    """The base, the records that train its drafts, and the questions of the comparison, made where they are missing.

    Raises:
        UserError: Part b has no base.
    """
    records, questions = out / "records.jsonl", out / "questions.jsonl"
    if part == "b" and base is None:
        raise UserError("--part b needs --base, the AR model of scripts/reproduce_smollm2.sh: outputs/smollm2_cpu/ar")
    if part == "c" and base is None:
        base = str(out / "smollm2")
        if not Path(base, "config.json").exists():
            unpack(Path(base))
    if not records.exists():
        if part == "c":
            write_jsonl(prompts.ask(prompts.fetch_titles(), 2600), records)
        else:
            write_jsonl(train_records(turns=0, longs=(1, 1)), records)
    if not questions.exists():
        write_jsonl(test_records("long", count) if part != "c" else first_lines(records, count), questions)
    return base or str(ASSETS / "easy-vqa-base"), records, questions


def first_lines(records: Path, count: int) -> list[measure.RawRecord]:
    """The first records, which `diffusionvl draft` holds out, with an empty answer."""
    lines = records.read_text(encoding="utf-8").splitlines()[:count]
    empty = {"role": "assistant", "content": [{"type": "text", "text": ""}]}
    return [{**record, "messages": [*record["messages"], empty]} for record in map(json.loads, lines)]


def train(base: str, records: Path, out: Path, part: Part, run: Run) -> None:
    """Trains drafts and counts the right ones, where that has not been done.

    Raises:
        UserError: A command failed, and has printed why.
    """
    folder, counted = out / run.name, out / f"{run.name}.json"
    flags = {"--held-out": part.held_out, **part.draft, "--dtype": part.dtype, "--rank": run.rank, "--steps": run.steps}
    flags |= {"--records": records, "--out": folder, "--checkpoints": run.checkpoints}
    given = {name: value if isinstance(value, tuple) else (value,) for name, value in flags.items()}
    words = [str(word) for name, values in given.items() for word in (name, *values)]
    if not (folder / "config.json").exists() and diffusionvl(["draft", base, *words]):
        raise UserError(f"{run.name} was not trained; see above")
    argv = [str(folder), "--records", str(records), "--out", str(counted), "--dtype", part.dtype]
    if acceptance.main([*argv, "--held-out", str(part.held_out), "--masks", str(part.masks)]):
        raise UserError(f"the drafts of {run.name} were not counted; see above")


def compare(base: str, questions: Path, out: Path, part: Part, longest: int) -> None:
    """Compares ways to decode by the last run's drafts, in fp32 and, where it was trained in another type, in that."""
    for dtype in dict.fromkeys(("float32", part.dtype)):
        argv = [base, str(out / part.runs[-1].name), "--out", str(out / dtype), "--records", str(questions)]
        argv += ["--questions", str(part.questions), "--max-new-tokens", str(longest), "--dtype", dtype]
        argv += ["--draft-sizes", *part.sizes, "--batches", *map(str, part.batches)]
        argv += ["--prompt-lookup"] * part.lookup + ["--verify-margin", "0.5"] * (dtype == "bfloat16")
        if measure.main(argv):
            raise UserError(f"the comparison in {dtype} failed; see above")


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(prog="python -m studies.lossless", description="Run a part of the study of lossless decoding.")
    parser.add_argument(
        "--part",
        choices=[*PARTS],
        required=True,
        help="a: the quickstart's base; b: SmolLM2 with eyes; c: SmolLM2 on open text",
    )
    parser.add_argument("--base", help="AR model; part b has none of its own")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the part")
    parser.add_argument("--smoke", action="store_true", help="two steps of everything, to see that it runs")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a part.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    return build_parser().run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    """Trains, counts, draws and compares."""
    part = PARTS[arguments.part]
    if arguments.smoke:
        runs, draft = (Run(2, 2, 2),), {**part.draft, **SMOKE}
        part = Part(runs, draft, 4, 2, 3, part.dtype, part.sizes[:1], (1,), part.lookup)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    base, records, questions = sources(arguments.part, arguments.base, out, part.questions)
    for run in part.runs:
        train(base, records, out, part, run)
        curve.draw(
            [out / f"{one.name}.json" for one in part.runs if (out / f"{one.name}.json").exists()], out / "curve.svg"
        )
    compare(base, questions, out, part, int(str(part.draft["--max-new-tokens"])))


if __name__ == "__main__":
    sys.exit(main())
