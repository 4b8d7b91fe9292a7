"""easy-VQA as records: what the package says, nothing of the test split in training, new pictures like the old."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from diffusionvl.data.record_parser import RecordParser
from diffusionvl.data.references import ImageRoot
from studies.quickstart import easy_vqa
from studies.quickstart.shapes import COLORS, draw_shape


def texts(record):
    return [part["text"] for message in record["messages"] for part in message["content"] if part["type"] == "text"]


def test_the_official_test_questions_are_all_there():
    import easy_vqa as package

    questions, answers, _ = package.get_test_questions()
    records = easy_vqa.test_records("short")
    assert len(records) == len(questions) == 9673
    assert sorted(tuple(texts(record)) for record in records) == sorted(zip(questions, answers, strict=True))
    third = len(records) // 3
    assert easy_vqa.test_records("short", limit=3) == [records[0], records[third], records[2 * third]]


def test_long_test_answers_agree_with_the_official_short_ones():
    shapes = {}
    for record in easy_vqa.test_records("short"):
        question, answer = texts(record)
        if answer in easy_vqa.SHAPES:
            shapes[record["images"][0]] = answer
    known = [record for record in easy_vqa.test_records("long") if record["images"][0] in shapes]
    assert len(known) > 1000
    for record in known:
        question, answer = texts(record)
        shape = shapes[record["images"][0]]
        seen = {
            easy_vqa.LONG_QUESTIONS[0]: f"{shape} on a plain",
            easy_vqa.LONG_QUESTIONS[1]: f"Only one {shape} is present",
            easy_vqa.LONG_QUESTIONS[2]: f"shape is a {shape}.",
        }
        assert seen[question] in answer


def test_training_never_sees_a_test_picture(tmp_path):
    tests = {record["images"][0] for kind in ("short", "long") for record in easy_vqa.test_records(kind)}
    trained = {path for record in easy_vqa.train_records() for path in record["images"]}
    trained |= {path for record in easy_vqa.attribute_records() for path in record["images"]}
    assert len(trained) == 4000
    assert not trained & tests


def test_train_records_are_valid_conversations_about_one_picture():
    for number, raw in enumerate(easy_vqa.train_records(turns=4)[:200]):
        record = RecordParser(ImageRoot(easy_vqa.Path("/"))).parse(raw, f"train:{number}")
        assert len(record.images) == 1
        roles = [message["role"] for message in record.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(roles) <= 10


def test_the_same_seed_gives_the_same_records():
    assert easy_vqa.train_records(seed=1) == easy_vqa.train_records(seed=1)
    assert easy_vqa.train_records(seed=1) != easy_vqa.train_records(seed=2)


def test_redrawn_pictures_have_the_shape_and_colour_of_the_official_ones(tmp_path):
    records = easy_vqa.train_records(repeats=2, turns=4, longs=(3, 3), drawn=tmp_path)
    assert all("easy_vqa" in record["images"][0] for record in records[:4000])
    redrawn = [record for record in records[4000:] if record["images"][0].startswith(str(tmp_path))]
    assert len(redrawn) > 3500  # of the others, the questions leave shape or colour open
    assert len({record["images"][0] for record in redrawn}) == len(redrawn)
    for record in redrawn[:300]:
        seen = " ".join(texts(record))
        colors = {tuple(pixel) for pixel in np.array(Image.open(record["images"][0])).reshape(-1, 3).tolist()}
        if "The image shows a single" in seen:
            color = seen.split("The image shows a single ")[1].split()[0]
            assert COLORS[color] in colors


@pytest.mark.parametrize(("shape", "share"), [("rectangle", 1.0), ("circle", np.pi / 4), ("triangle", 0.5)])
def test_a_shape_covers_its_share_of_its_box(shape, share):
    rng = random.Random(0)
    shares = []
    for _ in range(40):
        pixels = np.array(draw_shape(shape, "blue", rng)).astype(int)
        inked = np.abs(pixels - pixels[[0, 0, -1, -1], [0, -1, 0, -1]].max(0)).sum(-1) > 200
        rows, columns = inked.any(1).nonzero()[0], inked.any(0).nonzero()[0]
        shares.append(inked.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)))
    assert np.mean(shares) == pytest.approx(share, abs=0.06)


def test_unknown_shapes_and_colours_are_refused():
    with pytest.raises(ValueError, match="'star'"):
        draw_shape("star", "red", random.Random(0))
    with pytest.raises(ValueError, match="'pink'"):
        draw_shape("circle", "pink", random.Random(0))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("what shape is in the image?", "circle"), ("what color is the shape?", "red")], ("circle", "red")),
        ([("is there a circle?", "no"), ("is there a triangle?", "no")], ("rectangle", None)),
        ([("is there not a red shape?", "no")], (None, "red")),
    ],
)
def test_annotation_reads_the_questions(pairs, expected):
    assert easy_vqa.annotation(pairs) == expected


def test_contradictory_questions_are_an_error():
    with pytest.raises(ValueError, match="contradictory"):
        easy_vqa.annotation([("is there a circle?", "yes"), ("is there a triangle?", "yes")])


def test_the_command_writes_records_of_attributes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["easy_vqa", "--out", str(tmp_path), "--attributes", "both"])
    assert easy_vqa.main() == 0
    lines = (tmp_path / "attributes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == easy_vqa.attribute_records()
    assert [path.name for path in tmp_path.iterdir()] == ["attributes.jsonl"]


def test_the_command_writes_conversations(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["easy_vqa", "--out", str(tmp_path), "--repeats", "1"])
    easy_vqa.main()
    lines = (tmp_path / "conversations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == easy_vqa.train_records(turns=4)
    assert "conversations.jsonl: 4,000 records" in capsys.readouterr().out


def test_a_folder_that_cannot_be_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["easy_vqa", "--out", str(tmp_path / "file"), "--attributes", "shape"])
    assert easy_vqa.main() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path / "file") in err


@pytest.mark.parametrize("flags", [["--repeats", "0"], ["--turns", "-1"], ["--longs", "2", "1"], ["--turns", "0"]])
def test_bad_flags_write_nothing(tmp_path, flags):
    assert easy_vqa.main(["--out", str(tmp_path / "data"), *flags]) == 2
    assert not (tmp_path / "data").exists()
