"""The generated charts: every question has the answer that the chart shows, and a seed gives the same set."""

import json
import random
import re

import pytest
from PIL import Image

from eval.tasks.chart_reading import KINDS, make_chart, questions, write_benchmark


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_answered_by_the_chart(kind):
    rng = random.Random(0)
    for _ in range(50):
        chart = make_chart(kind, rng)
        shown = dict(zip(chart.names, chart.values, strict=True))
        assert len(shown) == len(set(chart.values)) >= 4  # no two are alike, so an extreme is one name
        assert kind != "pie" or sum(chart.values) == 100
        (reading, value), (asking, extreme), (adding, total) = questions(chart, rng)
        unit = "%" if kind == "pie" else ""
        assert value == f"{shown[named(reading, shown)[0]]}{unit}"
        best = max if " most " in asking else min
        assert shown[extreme] == best(chart.values)
        first, second = named(adding, shown)
        assert total == f"{shown[first] + shown[second]}{unit}"


def named(question, shown):
    """Names of the chart in a question, in order."""
    return [word for word in re.findall(r"\w+", question) if word in shown]


def test_same_seed_same_files(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    sets = [write_benchmark(folder, 3, seed) for folder, seed in zip(folders, (0, 0, 1), strict=True)]
    assert sets[0] == sets[1] != sets[2]
    assert [document["kind"] for document in sets[0][::3]] == list(KINDS)
    for name in ("test.jsonl", "images/0.png", "images/1.png", "images/2.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    lines = (folders[0] / "test.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == sets[0]
    with Image.open(folders[0] / "images/0.png") as image:
        assert image.size == (400, 320)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50
