"""A recipe, records and a trainer over them, by which several modules train."""

import json

import pytest
import torch
import yaml
from helpers import QUESTION, conversation, some_records

from diffusionvl import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset, load_processor
from diffusionvl.checkpoints.loading import load_model as load_any_model
from diffusionvl.data.conversation import ConversationEncoder


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


@pytest.fixture(scope="module")
def records(pictures):
    """Eight: of several turns, with several pictures, one and none."""
    more = [conversation((QUESTION, answer, pictures[n % 3])) for n, answer in enumerate(("red", "teal", "blue"))]
    return [
        *some_records(pictures),
        *more,
        conversation(("is it?", "no")),
        conversation((QUESTION, "yes", pictures[2])),
    ]


@pytest.fixture
def build(base_dir, translated_dir, tmp_path):
    """A function that makes a trainer; `eval_records`, `max_length` and settings as keywords."""

    def build(records, objective="block_diffusion", eval_records=None, max_length=None, views=1, **settings):
        folder = translated_dir if objective == "block_diffusion" else base_dir
        model, processor = load_any_model(folder, torch.float32), load_processor(folder)
        encoder = ConversationEncoder(processor, max_length=max_length)
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return BlockDiffusionTrainer(
            model,
            BlockDiffusionConfig(**{**defaults, **settings}, objective=objective),
            train_dataset=RowDataset(records, encoder, model.config, views=views),
            eval_dataset=RowDataset(eval_records, encoder, model.config) if eval_records else None,
            processing_class=processor,
        )

    return build
