"""The table of answers during training, and where the run is watched."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import QUESTION, conversation, load_model
from safetensors.torch import load_file
from transformers.integrations import TensorBoardCallback, TrackioCallback

from diffusionvl import RowDataset
from diffusionvl.checkpoints.loading import load_config
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.record import DataError, Record
from diffusionvl.train import main
from diffusionvl.training.samples import MASK, AnsweredQuestion, SampleTable, answer


@pytest.fixture(scope="module")
def recipe(base_dir, translated_dir, pictures, tmp_path_factory):
    """A function that writes a recipe over three records, with settings as keywords; its path and output_dir."""
    root = tmp_path_factory.mktemp("samples")
    lines = []
    for n, expected in enumerate(("red", "teal", "no")):
        text = "<image>" * (n < 2) + QUESTION
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": expected}]
        lines.append(json.dumps({"images": pictures[n : n + 1] if n < 2 else [], "messages": messages}))
    (root / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def write(name, objective="block_diffusion", **settings):
        out = root / name
        defaults = {
            "model": translated_dir if objective == "block_diffusion" else base_dir,
            "train_records": [str(root / "records.jsonl")],
            "output_dir": str(out),
            "objective": objective,
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "logging_steps": 1,
            "save_strategy": False,
            "disable_tqdm": True,
        }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(defaults | settings), encoding="utf-8")
        return str(root / f"{name}.yaml"), out

    return write


def test_samples_are_written_and_change_nothing(recipe):
    plain, expected = recipe("plain")
    sampled, out = recipe("sampled", sample_steps=2, sample_count=2)
    assert main([plain]) == main([sampled]) == 0
    weights = load_file(expected / "model.safetensors")
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step-000002.jsonl", "step-000004.jsonl"]
    samples = [json.loads(line) for line in (out / "samples/step-000004.jsonl").read_text().splitlines()]
    assert [sample["expected"] for sample in samples] == ["red", "teal"]
    for sample in samples:
        assert (sample["step"], sample["question"]) == (4, QUESTION)
        assert MASK in sample["denoising"][0]
        assert MASK not in sample["denoising"][-1]
        assert sample["denoising"][-1].startswith(sample["answer"][:1])


def test_an_answer_is_what_generate_gives(translated_dir, processor, pictures):
    model = load_model(translated_dir)
    content = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": QUESTION}]
    answers = [{"role": "assistant", "content": [{"type": "text", "text": "red"}]}]
    record = Record([{"role": "user", "content": content}, *answers], "test")
    state = torch.get_rng_state()
    sample = answer(model, processor, record)
    assert torch.equal(torch.get_rng_state(), state)
    masked = [line.count(MASK) for line in sample.denoising]
    assert masked[0] == 7  # of a block of 8, a step reveals one
    assert masked[:8] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert sample.tokens_per_forward > 0


def test_an_ar_model_answers_without_denoising(recipe):
    path, out = recipe("ar", "ar", sample_steps=4, sample_count=1)
    assert main([path]) == 0
    (sample,) = [json.loads(line) for line in (out / "samples/step-000004.jsonl").read_text().splitlines()]
    assert (sample["denoising"], sample["tokens_per_forward"]) == ([], 1.0)


def test_wandb_gets_metrics_and_samples(recipe, tmp_path, monkeypatch):
    """Offline: what was sent is in its own file."""
    import wandb

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads the environment once a process, and another test may have been the first
    sent = {}
    real = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda run, data, *a, **k: (sent.update(data), real(run, data, *a, **k))
    )
    path, _ = recipe("wandb", report_to="wandb", sample_steps=2, sample_count=1, peak_tflops=1)
    assert main([path]) == 0
    wandb.finish()
    assert {"train/loss", "train/grad_norm", "train/masked_accuracy", "train/mean_t", "train/mfu"} <= sent.keys()
    assert any(name.startswith("train/cross_entropy_t") for name in sent)
    assert sent["samples"].columns[:3] == ["step", "record", "question"]
    assert len(sent["samples"].data) == 1
    assert list(tmp_path.rglob("*.wandb"))


def test_what_can_not_be_used_is_not_asked(translated_dir, processor, pictures):
    records = [conversation((QUESTION, "red", path)) for path in ("gone.png", pictures[0], pictures[1])]
    config = load_config(translated_dir)
    rows = RowDataset(records, ConversationEncoder(processor), config, max_bad_samples=1)
    assert SampleTable(None, rows, 1).records == records[1:2]
    assert SampleTable(None, rows, 4).records == records[1:]
    with pytest.raises(DataError, match=r"gone\.png"):
        SampleTable(None, RowDataset(records, ConversationEncoder(processor), config), 1)


@pytest.fixture
def report(tmp_path):
    """A function that reports one sample to a tracker's callback."""

    def report(callback):
        trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[callback]))
        sample = AnsweredQuestion("a.jsonl:1", "is it?", "a|b", "yes", 0.5, [MASK * 2, "yes"])
        SampleTable(trainer, [], 0)._report([sample], tmp_path / "samples", 7)

    return report


def test_tensorboard_gets_a_table(report):
    """The tracker itself need not be installed: its callback is made without it."""
    callback = TensorBoardCallback.__new__(TensorBoardCallback)
    sent = []
    callback.tb_writer = SimpleNamespace(add_text=lambda *text: sent.append(text))
    report(callback)
    ((name, text, step),) = sent
    assert (name, step) == ("samples", 7)
    assert text.splitlines()[-1] == f"| 7 | a.jsonl:1 | is it? | a\\|b | yes | 0.5 | {MASK * 2}<br>yes |"


def test_trackio_gets_a_table(report, monkeypatch):
    sent = {}
    trackio = SimpleNamespace(log=sent.update, Table=lambda columns, rows: (columns, rows))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    report(TrackioCallback.__new__(TrackioCallback))
    columns, rows = sent["samples"]
    assert columns[0] == "step"
    assert rows == [[7, "a.jsonl:1", "is it?", "a|b", "yes", 0.5, f"{MASK * 2}\nyes"]]
