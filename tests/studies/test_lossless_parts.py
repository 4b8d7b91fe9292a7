"""The parts of the study of lossless decoding run as one command each, and go on where they were stopped."""

import json

import pytest

from studies.lossless import __main__ as study
from studies.lossless import prompts


@pytest.fixture(autouse=True)
def few_titles(monkeypatch):
    monkeypatch.setattr(prompts, "fetch_titles", lambda: [f"thing {number}" for number in range(3000)])


@pytest.mark.parametrize("part", ["a", "b"])
def test_a_part_runs_from_its_data_to_its_figures(base_dir, tmp_path, part, capsys):
    argv = ["--part", part, "--base", base_dir, "--out", str(tmp_path), "--smoke"]
    assert study.main(argv) == 0, capsys.readouterr().err
    assert {"curve.svg", "records.jsonl", "questions.jsonl", "rank2-steps2.json"} <= {
        one.name for one in tmp_path.iterdir()
    }
    rows = json.loads((tmp_path / "float32/lossless.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["generate", "autoregressive", "speculative, 8"]
    assert all(row["equal"] == 1 for row in rows)
    (tmp_path / "float32/lossless.json").unlink()
    assert study.main(argv) == 0  # nothing is trained again
    assert "nothing is left to do" not in capsys.readouterr().err


def test_eyes_need_a_base(tmp_path, capsys):
    assert study.main(["--part", "b", "--out", str(tmp_path)]) == 2
    assert "--part b needs --base" in capsys.readouterr().err


def test_each_title_is_asked_about_once_and_the_same_prompts_are_drawn_again():
    titles = [f"thing {number}" for number in range(50)]
    asked = prompts.ask(titles, 40)
    assert asked == prompts.ask(titles, 40)
    texts = [record["messages"][0]["content"][0]["text"] for record in asked]
    assert len({next(title for title in reversed(titles) if title in text) for text in texts}) == 40
    with pytest.raises(ValueError, match="--count 51: give 1 to 50"):
        prompts.ask(titles, 51)
