"""The benchmark of continuous feeding: both ways give the same answers, and their speeds are written."""

import json

from benchmarks.feeding import main


def test_both_ways_answer_alike_and_are_measured(translated_dir, tmp_path, capsys):
    file = tmp_path / "feeding.json"
    assert main([str(translated_dir), "--questions", "6", "--rows", "2", "--pairs", "1", "--json", str(file)]) == 0
    measured = json.loads(file.read_text())
    assert {*measured["speeds"]} == {"in_batches", "as_rows_become_free"}
    assert measured["ratio"] > 0
    assert "continuously / in batches" in capsys.readouterr().out
