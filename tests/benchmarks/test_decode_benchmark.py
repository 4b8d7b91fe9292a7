"""What the benchmark of decoding compares with: the reference's loop answers what `generate` answers."""

import json

import pytest
import torch
from helpers import QUESTION, lively, prompts

from benchmarks import decode
from benchmarks.decode_baselines import decode_fully, decode_like_the_reference
from benchmarks.decode_report import Measured, as_table, draw, summary
from diffusionvl.evaluation.costs import Cost

LONG = "is there a circle, a triangle or a square in the image, and what color does it have?"


@pytest.fixture
def questions(pictures):
    return [(QUESTION, pictures[0]), (LONG,), (LONG, pictures[1], pictures[2])]


@pytest.mark.parametrize("remasking", ["low_confidence_static", "low_confidence_dynamic"])
def test_the_references_loop_gives_the_same_tokens_in_more_forwards(translated_dir, processor, questions, remasking):
    model = lively(translated_dir)
    settings = {"remasking": remasking, "confidence_threshold": 0.3}
    batch = prompts(processor, *questions)
    ends = model.generate(**batch, max_new_tokens=10, eos_token_id=None)[:1, -1].tolist()
    output = model.generate(**batch, max_new_tokens=10, eos_token_id=ends, return_dict_in_generate=True, **settings)
    rows = [prompts(processor, question) for question in questions]
    with torch.no_grad():
        found = decode_like_the_reference(model, rows, ends, max_new_tokens=10, **settings)
    blocks = 0
    for tokens, row in zip(found.tokens, output.sequences[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        assert row[: len(tokens)] == tokens
        blocks += -(-len(tokens) // 4)
    assert found.cost.forwards == output.forwards.sum() + blocks + len(rows)  # commits and prefills
    assert 0 < found.cost.seconds_to_first_block < found.cost.seconds


def test_full_diffusion_is_one_block_without_a_cache(translated_dir, processor, questions):
    model = lively(translated_dir)
    inputs = prompts(processor, questions[0])
    with torch.no_grad():
        found = decode_fully(model, inputs, [], max_new_tokens=6, steps=6)
        model.config.block_origin, model.config.block_size = "absolute", inputs["input_ids"].shape[1] + 6
        whole = model.generate(**inputs, max_new_tokens=6, eos_token_id=None)
        part = decode_fully(model, inputs, [], max_new_tokens=6, steps=2)
    assert found.tokens == whole[:, -6:].tolist()
    assert part.tokens[0].count(model.config.mask_token_id) == 4


def test_the_summary_and_the_chart(tmp_path):
    rows = [("AR", 100, 2.0), ("reference, static", 100, 4.0), ("ours, static", 100, 2.5)]
    results = [
        Measured("task", name, batch, 1.0, Cost(1, tokens, 112.0, seconds / batch), 0.5 / batch, ids=[[1]])
        for batch in (1, 4)
        for name, tokens, seconds in rows
    ]
    numbers = summary(results)
    assert numbers[2]["against_ar"] == pytest.approx(0.8)
    assert numbers[2]["against_reference"] == pytest.approx(1.6)
    assert numbers[2]["same_tokens_as_reference"]
    table = as_table(numbers).splitlines()
    assert len(table) == 2 + len(results)
    assert table[4] == "| task | 1 | ours, static | 40.0 | 0.80x | 1.60x | 1.120 | 0 | 20% | 0 | 1.000 |"
    draw(results, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").stat().st_size > 5000


def test_a_run_measures_all_and_the_reference_once(base_dir, translated_dir, tmp_path, monkeypatch, capsys):
    small = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    monkeypatch.setitem(decode.SHAPES, "135M", {**small, "num_attention_heads": 4, "num_key_value_heads": 2})
    settings = "--questions 2 --repeats 1 --shape 135M --tokens 5 --prompt-tokens 9 --batches 1 2 --full-steps 2"
    models = ["--base", base_dir, "--model", translated_dir, "--name", "tiny", "--device", "cpu"]
    assert decode.main([*models, *settings.split(), "--json", str(tmp_path / "found.json")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    names = ["AR", "full", "reference, static", "ours, static"]
    trained = [*names, "ours, separate commit", "reference, dynamic", "ours, dynamic"]
    assert [row["contender"] for row in rows] == [*trained, *trained, *names, *names]
    found = {(row["task"], row["batch"], row["contender"]): row for row in rows}
    for task, count in (("tiny, easy-VQA long", 2), ("135M random, 5 tokens", 1)):
        alone, together = (found[task, batch, "reference, static"] for batch in (1, 2))
        assert alone["seconds"] == together["seconds"]  # measured once
        ours = [found[task, batch, "ours, static"] for batch in (1, 2)]
        assert all(row["same_tokens_as_reference"] and 0 < row["decoder_seconds"] < row["seconds"] for row in ours)
        assert ours[0]["tokens"] == alone["tokens"]
        assert ours[1]["tokens"] == 2 * ours[0]["tokens"] // count
        assert ours[0]["forwards"] < alone["forwards"]
    assert found["135M random, 5 tokens", 2, "ours, static"]["quality"] == 1
    fused, separate, reference = (
        found["tiny, easy-VQA long", 2, name]["forwards"]
        for name in ("ours, static", "ours, separate commit", "reference, static")
    )
    assert fused < separate == reference - 2  # which commits the last block of both answers, too
    assert capsys.readouterr().out.count("| tiny, easy-VQA long |") == 14


def test_a_causal_model_also_decodes_autoregressively_and_by_drafts(tmp_path, monkeypatch):
    small = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    monkeypatch.setitem(decode.SHAPES, "135M", {**small, "num_attention_heads": 4, "num_key_value_heads": 2})
    settings = "--causal --shape 135M --tokens 5 --prompt-tokens 9 --batches 2 --full-steps 2 --device cpu"
    assert decode.main([*settings.split(), "--json", str(tmp_path / "found.json")]) == 0
    rows = {row["contender"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert [*rows] == ["AR", "full", "ours, static", "ours, autoregressive", "ours, speculative"]
    plain, drafted = rows["ours, autoregressive"], rows["ours, speculative"]
    assert plain["tokens"] == drafted["tokens"] == plain["forwards"] >= drafted["forwards"]
