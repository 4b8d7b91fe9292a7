"""What the benchmark of decoding compares with: the reference's loop answers what `generate` answers."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import QUESTION, lively, prompts

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from decode import Measured, draw, summary
from decode_baselines import decode_fully, decode_like_the_reference

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
    assert found.forwards == output.forwards.sum() + blocks + len(rows)  # commits and prefills
    assert 0 < found.first < found.seconds


def test_full_diffusion_is_one_block_without_a_cache(translated_dir, processor, questions):
    model = lively(translated_dir)
    inputs = prompts(processor, questions[0])
    with torch.no_grad():
        found = decode_fully(model, inputs, [], max_new_tokens=6, measured=6)
        model.config.block_origin, model.config.block_size = "absolute", inputs["input_ids"].shape[1] + 6
        whole = model.generate(**inputs, max_new_tokens=6, eos_token_id=None)
        part = decode_fully(model, inputs, [], max_new_tokens=6, measured=2)
    assert found.tokens == whole[:, -6:].tolist()
    assert part.tokens[0].count(model.config.mask_token_id) == 4


def test_the_summary_and_the_chart(tmp_path):
    rows = [("AR", 100, 2.0), ("reference, static", 100, 4.0), ("ours, static", 100, 2.5)]
    results = [
        Measured("task", name, batch, 1.0, tokens, 112.0, seconds / batch, ids=[[1]])
        for batch in (1, 4)
        for name, tokens, seconds in rows
    ]
    ours = summary(results)[2]
    assert ours["against_ar"] == pytest.approx(0.8)
    assert ours["against_reference"] == pytest.approx(1.6)
    assert ours["same_tokens_as_reference"]
    draw(results, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").stat().st_size > 5000
