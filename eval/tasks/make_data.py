"""`python eval/tasks/make_data.py`: writes the data of the local tasks to outputs/eval-data. No network is needed."""

import shutil
import sys
from pathlib import Path

from diffusionvl.commands.command_line import Parser
from diffusionvl.data.sources.json_records import write_jsonl
from studies.quickstart.contest import answer, question
from studies.quickstart.easy_vqa import test_records

OUT = Path(__file__).parents[2] / "outputs" / "eval-data"  # where the tasks look


def write_easy_vqa(folder: Path) -> None:
    """Writes the official test questions, the long ones and their pictures."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for kind in ("short", "long"):
        documents = []
        for record in test_records(kind):
            picture = Path(record["images"][0])
            if not (folder / "images" / picture.name).exists():
                shutil.copyfile(picture, folder / "images" / picture.name)
            image = f"images/{picture.name}"
            documents.append({"image": image, "question": question(record), "answer": answer(record)})
        write_jsonl(documents, folder / f"{kind}.jsonl")
        print(f"{folder / kind}.jsonl: {len(documents):,} questions")


def main(argv: list[str] | None = None) -> int:
    """Writes the data."""
    parser = Parser(prog="make_data.py", description="Write the data of the local evaluation tasks.")
    return parser.run(lambda arguments: write_easy_vqa(OUT / "easy_vqa"), argv)


if __name__ == "__main__":
    sys.exit(main())
