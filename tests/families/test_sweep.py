"""The sweep over transformers' model types, on a few of them."""

import pytest
import sweep


@pytest.mark.parametrize(
    ("model_type", "verdict"),
    [
        ("llama", sweep.PROVED),
        ("stablelm", sweep.PROVED),  # its layers hand no `is_causal` on
        ("gpt2", sweep.PROVED),  # its decoder has no `layers`
        ("modernbert-decoder", sweep.PROVED),  # `get_decoder()` gives its LM head
        ("granitemoehybrid", sweep.PROVED),  # of a stateful class, with attention in all layers
        ("doge", sweep.REFUSED),
        ("mamba", sweep.REFUSED),
    ],
)
def test_verdicts(model_type, verdict):
    assert sweep.prove(model_type)["verdict"] == verdict


def test_the_page_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{sweep.BEGIN}\nold\n{sweep.END}\nafter\n", encoding="utf-8")
    results = [
        {"type": "a", "verdict": sweep.PROVED, "reads": "text"},
        {"type": "b", "verdict": sweep.REFUSED, "reason": "model type 'b' cannot be translated: it writes no text (b)"},
    ]
    sweep.write_page(page, results)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| proved | text | `a` |" in text
    assert "| refused | it writes no text | `b` |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
