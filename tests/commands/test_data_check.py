"""`diffusionvl data check`: all problems of all files, told in one go, by the encoder that trains."""

import json
import os
from pathlib import Path

import pytest
from helpers import QUESTION
from PIL import Image

from diffusionvl.cli import main
from diffusionvl.commands import data_report as report
from diffusionvl.commands.data_report import CheckReport, Finding, Problem


def record(question, answer, *images):
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return json.dumps({"images": list(images), "messages": messages})


@pytest.fixture
def check(translated_dir, tmp_path, capsys):
    """A function that checks files and returns the exit code, what was printed, and the JSON."""

    def check(*paths, **settings):
        out = tmp_path / "report.json"
        settings = {"model": translated_dir, "json": str(out), "workers": "0", **settings}
        flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        code = main(["data", "check", *map(str, paths), *flags])
        return code, capsys.readouterr().out, json.loads(out.read_text())

    return check


@pytest.fixture
def good(tmp_path, pictures):
    """A file of three records that can be used."""
    path = tmp_path / "good.jsonl"
    path.write_text("\n".join([record(QUESTION, "red", pictures[0]), record("is it?", "no"), record("q", "yes " * 30)]))
    return path


def test_records_that_can_be_used(check, good, translated_dir):
    code, text, found = check(good)
    assert code == 0
    assert (found["records"], found["usable"], found["problems"], found["truncated"]) == (3, 3, [], [])
    assert found["row_tokens"]["most"] > found["clean_tokens"]["most"] > found["clean_tokens"]["least"] > 0
    assert 0 < found["supervised_share"] < 2
    assert "records     3, of which 3 give a row" in text
    assert "problems    0" in text


def test_all_problems_are_told_with_their_places(check, good, tmp_path, pictures):
    half = Path(pictures[0]).read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    Image.new("RGB", (1, 300)).save(tmp_path / "thin.png")
    lines = [
        record("q", "a"),
        '{"messages": [',
        "",
        record(QUESTION, "a", "gone.png", "half.png", "also_gone.png"),
        json.dumps({"images": ["a.png"], "messages": [{"role": "user", "content": "q"}]}),
        record("q <|im_end|>", "a"),
        record("q", "a", "../x.png"),
        record("q", "a", "thin.png"),
        json.dumps({"text": "q"}),
    ]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(lines))
    (tmp_path / "broken.json").write_text('[{"messages"]')
    code, text, found = check(bad, tmp_path / "broken.json", tmp_path / "none.jsonl", good)
    assert code == 1
    assert (found["records"], found["usable"]) == (8 + 3, 1 + 3)
    kinds = {
        "layout": 2,  # the last line, and the file that is not there
        "broken line": 2,
        "missing image": 2,
        "bad image": 2,
        "image places": 1,
        "conversation": 1,
        "image path": 1,
    }
    assert found["kinds"] == kinds
    messages = [problem["message"] for problem in found["problems"]]
    for place in ("none.jsonl: cannot be read", "broken.json:1: broken JSON", "bad.jsonl:2: broken JSON"):
        assert any(place in message for message in messages), place
    for number, word in {
        4: "half.png",
        5: "1 image(s) for 0 place(s)",
        6: "take it out",
        7: "leaves",
        8: "thin.png",
    }.items():
        assert any(f"bad.jsonl:{number}: " in message and word in message for message in messages), number
    assert sum("bad.jsonl:4: " in message for message in messages) == 3
    assert all(message in text for message in messages)
    assert all(f"{count}  {kind}" in text for kind, count in kinds.items())


def test_exit_codes_are_those_of_training(check, good, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{")
    assert check(good, tmp_path / "bad.jsonl")[0] == 1
    assert check(good, tmp_path / "bad.jsonl", max_bad_samples="1")[0] == 0
    assert check(tmp_path / "bad.jsonl", max_bad_samples="1")[0] == 1  # nothing is left to train on


def test_truncation_is_told(check, good):
    code, text, found = check(good, max_length="24")
    assert code == 0
    assert len(found["truncated"]) == 2
    (dropped,) = found["dropped"]
    assert dropped.endswith("good.jsonl:1")
    assert "good.jsonl:1: dropped by truncation" in text
    assert "good.jsonl:3: truncated" in text
    assert found["clean_tokens"]["most"] == 24
    code, _, found = check(good, max_length="2")
    assert (code, found["usable"]) == (1, 0)


def test_processes_find_the_same(check, good, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n" * 30)
    found = [check(good, tmp_path / "bad.jsonl", workers=workers)[2] for workers in ("0", "2")]
    assert found[0] == found[1]
    assert found[0]["kinds"] == {"broken line": 30}


def test_arguments_that_can_not_be_used(good, translated_dir, capsys, tmp_path):
    assert main(["data", "check", str(good), "--model", str(tmp_path / "none")]) == 2
    assert "diffusionvl data check: error:" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["data", "check", str(good)])
    assert error.value.code == 2
    assert main(["data", "check", str(good), "--model", translated_dir, "--json", str(tmp_path / "no/r.json")]) == 2


def test_long_lists_are_cut_in_the_table_alone(monkeypatch):
    monkeypatch.setattr(report, "SHOWN", 2)
    problems = [Problem("layout", f"place {number}") for number in range(5)]
    whole = CheckReport(problems, [Finding(name="x", clean=3, row=5, supervised=2)])
    assert len(whole.to_json()["problems"]) == 5
    assert "... and 3 more; --json FILE writes all of them" in whole.to_text()
    assert "place 1" in whole.to_text()
    assert "place 2" not in whole.to_text()


def test_unknown_keys_are_counted_one_by_one(check, tmp_path):
    lines = [json.dumps({**json.loads(record("q", "a")), "score": n, **({"rank": n} if n else {})}) for n in range(3)]
    (tmp_path / "odd.jsonl").write_text("\n".join([*lines, record("q", "a")]))
    code, text, found = check(tmp_path / "odd.jsonl", max_bad_samples="3")
    assert (code, found["usable"]) == (0, 1)
    assert found["kinds"] == {"unknown key 'score' of a record": 3, "unknown key 'rank' of a record": 2}
    assert "3  unknown key 'score' of a record" in text


def test_what_is_odd_is_counted(check, tmp_path):
    last = {"role": "user", "content": "and?"}
    whole = json.loads(record("q", "a"))
    lines = [
        record("q", ""),
        record("q", " \n"),
        json.dumps({"messages": [*whole["messages"], last]}),
        record("q", "a"),
    ]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines))
    code, text, found = check(tmp_path / "odd.jsonl")
    assert (code, found["usable"], len(found["notes"])) == (0, 4, 3)
    assert "2  has an empty answer" in text
    assert "odd.jsonl:3: ends with a turn that has no answer, which is left out" in text


def test_a_row_longer_than_the_models_positions_is_a_problem(check, tmp_path):
    (tmp_path / "long.jsonl").write_text("\n".join([record("is it red? " * 400, "a"), record("q", "a")]))
    code, text, found = check(tmp_path / "long.jsonl")
    assert (code, found["usable"], found["kinds"]) == (1, 1, {"too long": 1})
    assert "long.jsonl:1: needs" in text
    assert check(tmp_path / "long.jsonl", max_length="64")[0] == 0


def test_only_a_report_of_this_command_is_replaced(check, good, capsys, translated_dir):
    before = good.read_bytes()
    for path in (good, good.parent):
        assert main(["data", "check", str(good), "--model", translated_dir, "--json", str(path)]) == 2
        assert "holds something else than a report" in capsys.readouterr().err
    assert good.read_bytes() == before
    assert check(good)[0] == check(good)[0] == 0


def test_a_path_that_is_not_utf_8_is_reported(translated_dir, tmp_path, capsys):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    assert main(["data", "check", path, "--model", translated_dir]) == 1
    assert r"\udcff.jsonl: cannot be read (No such file" in capsys.readouterr().out
