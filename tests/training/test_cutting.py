"""A global batch may be cut in any way: rows, accumulation, packs and processes give one loss and one gradient."""

import json

import processes
import pytest
import torch
from helpers import QUESTION, assert_same
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from diffusionvl.commands.recipe import parse_arguments
from diffusionvl.training.run import build_trainer

LONG = "There is no circle and no triangle in it, and nothing else is drawn in the image."
TURNS = [  # eight records: several turns and pictures, one and none; answers of one token to several blocks
    [(QUESTION, "yes", 0), ("is there a circle?", LONG), (QUESTION, "no", 1)],
    [(QUESTION, LONG, 1, 2)],
    [("what shape is in the image?", "circle")],
    [(QUESTION, "red", 0)],
    [(QUESTION, "teal", 1)],
    [("is it?", LONG)],
    [(QUESTION, "blue", 2), ("is it?", "no")],
    [("is it?", "no")],
]


@pytest.fixture(scope="module")
def arguments(base_dir, translated_dir, pictures, tmp_path_factory):
    """A function that gives the arguments of one step over all eight records."""
    folder = tmp_path_factory.mktemp("cutting")
    lines = []
    for turns in TURNS:
        messages = []
        for question, answer, *images in turns:
            parts = [{"type": "image", "image": pictures[image]} for image in images]
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": answer})
        lines.append(json.dumps({"messages": messages}))
    (folder / "records.jsonl").write_text("\n".join(lines))

    def arguments(objective="block_diffusion", **settings):
        settings = {
            "model": translated_dir if objective == "block_diffusion" else base_dir,
            "train_records": folder / "records.jsonl",
            "output_dir": folder / "out",
            "objective": objective,
            "max_steps": 1,
            "max_grad_norm": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": "yes",
            "use_cpu": "yes",
            **settings,
        }
        return [f"--{name}={value}" for name, value in settings.items()]

    return arguments


class Watch(TrainerCallback):
    """Keeps the gradients of a step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_step(argv):
    """Loss and gradients of one step, and how many rows it had."""
    trainer = build_trainer(*parse_arguments(argv))
    watch = Watch()
    trainer.add_callback(watch)
    trainer.train()
    return trainer.state.log_history[0]["loss"], watch.gradients, len(trainer.train_dataset)


def save_steps(jobs):
    """As `one_step`, in one of several processes, one after another."""
    for argv, path in jobs:
        loss, found, _ = one_step(argv)
        save_file({name.removeprefix("module."): value for name, value in found.items()}, path, {"loss": str(loss)})
    torch.distributed.destroy_process_group()


def assert_equal_steps(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_same(found[1][name], gradient)


PACKED = {"packing": "yes", "pack_tokens": 120, "pack_images": 3}  # four rows


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
@pytest.mark.parametrize("objective", ["block_diffusion", "ar"])
def test_rows_accumulation_and_packs(arguments, objective, normalizer):
    def step(**settings):
        return one_step(arguments(objective, normalizer=normalizer, **settings))

    whole = step(per_device_train_batch_size=8)
    assert max(gradient.abs().max() for gradient in whole[1].values()) > 1e-3
    assert_equal_steps(step(per_device_train_batch_size=1, gradient_accumulation_steps=8), whole)
    packed = step(per_device_train_batch_size=2, gradient_accumulation_steps=2, **PACKED)
    assert packed[2] in (3, 4)
    assert_equal_steps(packed, whole)


def test_two_processes(arguments, tmp_path):
    cases = {
        "rows": {"normalizer": "per_sample", "gradient_accumulation_steps": 4},
        "rows-tokens": {"normalizer": "tokens", "gradient_accumulation_steps": 4},
        "packs": {"normalizer": "per_sample", "gradient_accumulation_steps": 2, **PACKED},
        "packs-tokens": {"normalizer": "tokens", "gradient_accumulation_steps": 2, **PACKED},
    }
    jobs = [
        (arguments(per_device_train_batch_size=1, **settings), str(tmp_path / f"{name}.safetensors"))
        for name, settings in cases.items()
    ]
    assert processes.run(save_steps, jobs, world_size=2) == [0, 0]
    for normalizer, names in {"per_sample": ("rows", "packs"), "tokens": ("rows-tokens", "packs-tokens")}.items():
        whole = one_step(arguments(per_device_train_batch_size=8, normalizer=normalizer))
        for name in names:
            path = tmp_path / f"{name}.safetensors"
            with safe_open(path, "pt") as file:
                loss = float(file.metadata()["loss"])
            assert_equal_steps((loss, load_file(path)), whole)
