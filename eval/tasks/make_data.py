"""`python -m eval.tasks.make_data`: writes the data of the local tasks to outputs/eval-data. No network is needed."""

import json
import random
import shutil
import sys
from pathlib import Path

from diffusionvl.commands.command_line import Parser
from diffusionvl.data.sources.json_records import write_jsonl
from studies.quickstart.contest import answer, question
from studies.quickstart.easy_vqa import COLORS, SHAPES, annotation, pictures_of, test_records

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
    documents = [
        {"image": f"images/{Path(path).name}", "question": question, "answer": answer}
        for path, question, answer in questions_as_json("test")
    ]
    write_jsonl(documents, folder / "json.jsonl")
    print(f"{folder / 'json'}.jsonl: {len(documents):,} questions")
    records = [
        {
            "id": f"easyvqa-json-{number}",
            "images": [path],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
        }
        for number, (path, question, answer) in enumerate(questions_as_json("train"))
    ]
    write_jsonl(records, folder / "json_train.jsonl")
    print(f"{folder / 'json_train'}.jsonl: {len(records):,} records to train on")


def questions_as_json(split: str) -> list[tuple[str, str, str]]:
    """Lists path, question and answer for every picture of a split; answers are JSON of what is drawn and asked for."""
    rng, found = random.Random(0), []
    for path, pairs in pictures_of(split):
        shape, color = annotation(pairs)
        if not shape or not color:
            continue
        asked = (color, shape) if rng.random() < 0.5 else (rng.choice(COLORS), rng.choice(SHAPES))
        answer = {"shape": shape, "color": color, "present": asked == (color, shape)}
        found.append((path, f"as JSON: is there a {asked[0]} {asked[1]}?", json.dumps(answer)))
    return found


def main(argv: list[str] | None = None) -> int:
    """Writes the data."""
    parser = Parser(prog="make_data.py", description="Write the data of the local evaluation tasks.")
    return parser.run(lambda arguments: write_easy_vqa(OUT / "easy_vqa"), argv)


if __name__ == "__main__":
    sys.exit(main())
