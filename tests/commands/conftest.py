"""A training recipe over a few records."""

import json

import pytest
import yaml
from helpers import QUESTION
from training_runs import record


@pytest.fixture
def recipe(base_dir, translated_dir, pictures, tmp_path):
    """A function that writes a recipe over four records, with settings as keywords, and returns its path."""
    records = [record(QUESTION, answer, pictures[n % 3]) for n, answer in enumerate(("red", "teal", "blue"))]
    lines = [json.dumps(each) for each in [*records, record("is it?", "no")]]
    (tmp_path / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def write(**settings):
        objective = settings.get("objective", "block_diffusion")
        defaults = {
            "model": translated_dir if objective == "block_diffusion" else base_dir,
            "train_records": [str(tmp_path / "records.jsonl")],
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": False,  # what `save_strategy: no` is to a YAML parser
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(defaults | settings), encoding="utf-8")
        return str(tmp_path / "recipe.yaml")

    return write
