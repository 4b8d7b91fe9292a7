"""The benchmark of a training step: what it counts is what the shapes say, and each contender runs what it claims."""

import json

import pytest
import torch

from benchmarks.train_step import LANGUAGE, WHOLE, main, peak_mib
from benchmarks.train_step_contenders import SHAPES

ROW = "324 + 150"  # tiny: 16 image tokens and 8 words, a response of 16


def measured(path, *argv):
    """Contenders by part and case."""
    main(["--tiny", "--seconds", "0", "--json", str(path), *argv])
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    return {(each["case"], each["part"]): {one["contender"]: one for one in each["contenders"]} for each in results}


def language_tflop(tokens, logits, causal=False):
    """Operations of a step of the tiny language model by hand: 6 for a weight, 14 for a pair and channel."""
    shape = SHAPES["tiny"]
    head_dim = shape.hidden // shape.heads
    attention = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.key_value_heads * head_dim
    weights = shape.layers * (attention + 3 * shape.hidden * shape.intermediate)
    pairs = tokens**2 / (2 if causal else 1)
    operations = 6 * weights * tokens + 14 * shape.layers * shape.hidden * pairs
    return (operations + 6 * shape.vocabulary * shape.hidden * logits) / 1e12


def test_what_is_counted_is_what_the_shapes_say(tmp_path, capsys):
    found = measured(tmp_path / "plain.json")
    expected = {"reference": (80, 40, False), "ours": (56, 8, False), "AR": (40, 16, True)}
    tower = set()
    for contender, (tokens, logits, causal) in expected.items():
        part, whole = (found[ROW, name][contender] for name in (LANGUAGE, WHOLE))
        assert (part["tokens"], part["clean_tokens"]) == (whole["tokens"], whole["clean_tokens"]) == (tokens, 40)
        assert part["tflop"] == pytest.approx(language_tflop(tokens, logits, causal))
        assert part["tokens_per_second"] == pytest.approx(40 / part["seconds"])
        tower.add(round((whole["tflop"] - part["tflop"]) * 1e12))
    assert len(tower) == 1  # all run it once
    texts = found["texts", LANGUAGE]
    assert texts["packed"]["tokens"] == texts["ours"]["tokens"] == 120
    assert texts["packed"]["tflop"] == pytest.approx(language_tflop(120, 24))
    assert ("texts", WHOLE) not in found
    assert "aimed at >= 1.6" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a GPU, its memory is measured")
def test_memory_is_counted_that_a_run_holds_and_lets_go():
    assert peak_mib(lambda: torch.ones(2**24).sum()) == pytest.approx(64, abs=4)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # 5.23's; 5.17 knows no other name
def test_gradient_checkpointing_runs_layers_twice(tmp_path):
    found = measured(tmp_path / "checkpointing.json", "--gradient-checkpointing", "--parts", LANGUAGE)[ROW, LANGUAGE]
    assert 1.2 < found["ours"]["tflop"] / language_tflop(56, 8) < 4 / 3  # a forward more, of all but the last layer
