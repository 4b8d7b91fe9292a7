"""The report page: parses, needs no other file, shows every number, and its images decode."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from finished_runs import finished_run
from PIL import Image

from eval import report
from eval.results import read_runs

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


@pytest.fixture
def runs(tmp_path):
    """An AR model and a block-diffusion one on two tasks, one of them in several ways."""
    finished_run(tmp_path, "ar", variant="ar", metrics={"tokens_per_second": 50.0, "exact_match": 0.75})
    for variant, quality, speed in (
        ("static-1.0", 0.7, 60.0),
        ("static-2.0", 0.65, 120.0),
        ("dynamic-0.9", 0.6, 240.0),
    ):
        finished_run(tmp_path, variant=variant, metrics={"exact_match": quality, "tokens_per_second": speed})
    for model, quality in (("ar", 0.9), ("block-diffusion", 0.875)):
        errors = {"exact_match": 0.0125} if model != "ar" else {}
        finished_run(tmp_path, model, "local", "easy_vqa_short", metrics={"exact_match": quality}, errors=errors)
    return tmp_path


def test_page_shows_everything_and_needs_nothing(runs, capsys):
    assert report.main([str(runs)]) == 0
    text = (runs / "report.html").read_text()
    page = Page(text)
    shown = " ".join(page.text)
    for number in (
        "90.00",
        "87.50 ± 1.25",
        "75.00",
        "65.00",
        "4.80x",
        "1.20x",
        "Which colour, 1?",
        "✓ right",
        "✗ wrong",
    ):
        assert number in shown
    assert "local: easy_vqa_short block-diffusion 1.000 100.0 1.00x 0.100" in re.sub(r"\s+", " ", shown)
    assert "How block-diffusion came to an answer" in shown
    for fact in ("2026-11-28", "CPU, 2 cores, 1 x 2 threads", "torch 9.9", "max_new_tokens 96, block_size 8"):
        assert fact in shown
    assert "<b>block-diffusion</b>" in shown  # an answer is text, not markup
    assert text.count("class='film'") == 2
    outside = [value for tag, name, value in page.attributes if name in ("src", "href", "xlink:href") and value]
    assert all(value.startswith(("data:", "#")) for value in outside)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    pictures = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    assert len(pictures) == 4
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
            assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert text.count("<svg") == 2
    names = {path.name for path in runs.glob("*.png")}
    assert names == {"report-accuracy.png", "report-speed-0.png"}
    for name in names:
        with Image.open(runs / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_draws_it(runs):
    assert report.main([str(runs)]) == 0
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,3000"]
    drawn = runs / "page.png"
    subprocess.run([*command, f"--screenshot={drawn}", (runs / "report.html").as_uri()], check=True, timeout=300)
    with Image.open(drawn) as image:
        counts = {color: count for count, color in image.convert("RGB").getcolors(1 << 24)}
    assert counts[255, 0, 0] > 4 * 100 * 100  # four pictures
    assert counts[0x2A, 0x7F, 0xD4] > 1000  # bars of the first model


def test_curves_are_lines_of_a_model_and_a_remasking(runs):
    (drawn,) = report.curves(read_runs([runs])).values()
    assert [(curve.name, curve.labels, curve.speeds) for curve in drawn] == [
        ("ar", ["ar"], [50.0]),
        ("block-diffusion, dynamic", ["0.9"], [240.0]),
        ("block-diffusion, static", ["1.0", "2.0"], [60.0, 120.0]),
    ]


def test_best_way_stands_for_a_task_that_was_run_in_several(runs):
    models, lines = report.accuracy_table(read_runs([runs]))
    assert models == ["ar", "block-diffusion"]
    assert lines == [
        ["local: easy_vqa_short · exact_match", "2", "90.00", "87.50 ± 1.25"],
        ["local-speed: easy_vqa_long · exact_match", "2", "75.00", "70.00 (static-1.0)"],
    ]


def test_costs_are_compared_where_they_can_be(tmp_path):
    for model, batch_size, speed in (("ar", 1, 50.0), ("alike", 1, 100.0), ("other", 64, 900.0)):
        setup = {"hardware": "CPU, 2 cores", "batch_size": batch_size, "processes": 1}
        finished_run(tmp_path, model, "local", metrics={"tokens_per_second": speed}, setup=setup, samples=batch_size)
    lines = report.cost_table(read_runs([tmp_path]))
    assert [(line[1], line[3], line[4], line[6]) for line in lines] == [
        ("ar", "50.0", "1.00x", "1"),
        ("alike", "100.0", "2.00x", "1"),
        ("other", "900.0", "–", "64"),
    ]
    _, ((_, questions, *_),) = report.accuracy_table(read_runs([tmp_path]))
    assert questions == "1 or 64"


def test_one_model_with_one_task_and_a_score_that_is_no_share(tmp_path):
    metrics = {"mme_perception_score": 1500.0}
    finished_run(
        tmp_path, "mine", "tables-1-2", "mme", metrics=metrics, higher_is_better={"mme_perception_score": True}
    )
    assert report.main([str(tmp_path), "--html", str(tmp_path / "new" / "a.html")]) == 0
    page = Page((tmp_path / "new" / "a.html").read_text())
    assert "1500" in " ".join(page.text)
    assert (tmp_path / "new" / "a-accuracy.png").exists()


@pytest.mark.parametrize(
    ("target", "shown"),
    [("red", "red"), ('["a, b", "c"]', "a, b"), ("[3]", "[3]"), ("""["it's", 'b']""", """["it's", 'b']"""), ("7", "7")],
)
def test_target_of_several_references(target, shown):
    assert report.readable_target(target) == shown


def test_nothing_to_report(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.jsonl", "{"),
        ("samples.jsonl", "3\n"),
        ("0.json", "{"),
        ("0.json", "{}"),
        ("0-0.png", "junk"),
    ],
)
def test_a_broken_file_of_a_run_is_one_line(name, content, tmp_path, capsys):
    folder = finished_run(tmp_path).folder
    next(folder.rglob(name)).write_text(content)
    assert report.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert name in err


def test_a_card_without_its_sample_is_left_out(tmp_path):
    folder = finished_run(tmp_path).folder
    (folder / "samples.jsonl").write_text("")
    assert report.main([str(tmp_path)]) == 0
    assert "Which colour" not in (tmp_path / "report.html").read_text()
