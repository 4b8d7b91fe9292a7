"""An assembly goes the whole way: it is aligned, translated and trained, in one process and in two, and answers."""

import json

import processes
import pytest
import torch
from assemblies import IMAGE, TEXT, turn
from helpers import QUESTION, losses, prompts, run

from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.training.parts import PARTS, Parts


def train(capsys, records, model, out, *settings):
    """Trains two steps; gives the parts of the model that moved."""
    common = ("--max_steps", "2", "--save_strategy", "no", "--learning_rate", "1e-2", "--warmup_steps", "0")
    argv = ("--model", str(model), "--output_dir", str(out), "--train_records", str(records), *common, *settings)
    code, _, err = run(capsys, "train", *argv, "--per_device_train_batch_size", "3")
    assert code == 0, err
    before, after = (load_model(str(folder), torch.float32) for folder in (model, out))
    unchanged = before.state_dict()
    changed = {name for name, value in after.named_parameters() if not torch.equal(value, unchanged[name])}
    return {Parts(after).of(name) for name in changed}


def write_records(path, pictures):
    """A picture in a turn, a picture of another shape, two, and none."""
    with path.open("w") as file:
        for paths in (pictures[:1], pictures[1:2], pictures[1:], []):
            turns = [turn([*[IMAGE] * len(paths), TEXT]), turn("red", "assistant")]
            file.write(json.dumps({"images": paths, "messages": turns}) + "\n")
    return path


@pytest.mark.parametrize(("tower", "grid"), [("siglip", "anyres"), ("clip", "single")])
def test_align_translate_train_infer(build, pictures, tmp_path, capsys, tower, grid):
    """The whole journey by commands."""
    records = write_records(tmp_path / "records.jsonl", pictures)
    base, aligned = build(tower, grid), tmp_path / "aligned"
    assert train(capsys, records, base, aligned, "--objective", "ar", "--train_modules", "projector") == {"projector"}
    assert train(capsys, records, aligned, tmp_path / "ar", "--objective", "ar") == set(PARTS)
    init = tmp_path / "init"
    assert run(capsys, "translate", str(aligned), "--out", str(init), "--block-size", "4")[0] == 0
    assert train(capsys, records, init, tmp_path / "model") == set(PARTS)
    argv = ("--model", str(tmp_path / "model"), "--prompt", QUESTION, "--device", "cpu")
    for paths in (pictures[1:2], pictures[:2]):
        images = [word for path in paths for word in ("--image", path)]
        code, out, err = run(capsys, "infer", *argv, *images, "--json", "--max-new-tokens", "6")
        assert code == 0, err
        assert json.loads(out)["tokens"] > 0


def test_a_batch_of_unlike_pictures_decodes_as_each_alone(build, pictures, tmp_path, capsys):
    run(capsys, "translate", build("siglip", "anyres"), "--out", str(tmp_path), "--block-size", "4")
    model, processor = load_model(str(tmp_path)).eval(), load_processor(str(tmp_path))
    asked = [(QUESTION, path) for path in pictures]
    together = model.generate(**prompts(processor, *asked), max_new_tokens=6)[:, -6:]
    for row, question in zip(together, asked, strict=True):
        assert torch.equal(model.generate(**prompts(processor, question), max_new_tokens=6)[0, -6:], row)


def test_two_processes_train_as_one(build, pictures, tmp_path):
    """Nothing reads the last norm of the tower, and one of the processes has a batch without a picture."""
    records = write_records(tmp_path / "records.jsonl", pictures)
    argv = [
        "--model",
        build("siglip", "anyres"),
        "--train_records",
        str(records),
        "--objective",
        "ar",
        "--max_steps",
        "3",
    ]
    argv += ["--global_batch_size", "2", "--per_device_train_batch_size", "1", "--gradient_checkpointing", "yes"]
    argv += ["--save_strategy", "no", "--logging_steps", "1", "--warmup_steps", "0", "--learning_rate", "1e-2"]
    found = []
    for size in (1, 2):
        out = tmp_path / str(size)
        assert processes.run(processes.train, [*argv, "--output_dir", str(out)], world_size=size) == [0] * size
        found.append(losses(out))
    assert len(found[0]) == 3
    assert found[1] == pytest.approx(found[0], rel=1e-4)
