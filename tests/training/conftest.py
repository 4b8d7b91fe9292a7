"""A recipe that several modules train by."""

import json

import pytest
import yaml
from helpers import QUESTION


@pytest.fixture(scope="module")
def recipe(translated_dir, pictures, tmp_path_factory):
    """A recipe over eight records in batches of two: epochs of four steps, seven steps, a checkpoint every two."""
    folder = tmp_path_factory.mktemp("resume")
    lines = []
    for n, answer in enumerate(("red", "teal", "blue", "yes", "no", "circle", "it is a circle", "no, it is not")):
        images = [pictures[n % 3]] if n != 3 else []
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"images": images, "messages": messages}))
    (folder / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "model": translated_dir,
        "train_records": [str(folder / "records.jsonl")],
        "per_device_train_batch_size": 2,
        "max_steps": 7,
        "logging_steps": 1,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "resume_from_checkpoint": "last",
        "disable_tqdm": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(folder / "recipe.yaml")
