"""Tables: parquet files and data sets of Hugging Face `datasets`."""

import io
import json
import os

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from diffusionvl.data.images import open_image
from diffusionvl.data.record import DataError
from diffusionvl.data.sources.records import read_records

ANSWER = {"role": "assistant", "content": "a"}
ROWS = {
    "id": ["x", "y"],
    "messages": [[{"role": "user", "content": "<image>q"}, ANSWER], [{"role": "user", "content": "q"}, ANSWER]],
    "images": [["a.png"], []],
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(size):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_a_parquet_file(tmp_path):
    path = str(tmp_path / "data.parquet")
    datasets.Dataset.from_dict(ROWS).to_parquet(path)
    records = read_records([path])
    assert [record.name for record in records] == [f"{path}:1 (id 'x')", f"{path}:2 (id 'y')"]
    assert [record.images for record in records] == [[str(tmp_path / "a.png")], []]
    assert read_records([path], "/root")[0].images == ["/root/a.png"]


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_pictures_in_a_table_stay_as_they_are_stored(tmp_path, kind):
    path = str(tmp_path / ("data.parquet" if kind == "parquet" else "data"))
    features = datasets.Features(
        datasets.Dataset.from_dict(ROWS).features | {"images": datasets.List(datasets.Image())}
    )
    table = datasets.Dataset.from_dict(ROWS | {"images": [[png((8, 4))], []]}, features=features)
    table.to_parquet(path) if kind == "parquet" else table.save_to_disk(path)
    records = read_records([path])
    (picture,) = records[0].images
    assert isinstance(picture, bytes)
    assert open_image(picture, "x").size == (8, 4)
    assert records[1].images == []


def test_a_column_of_one_picture(tmp_path):
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    rows = {
        "image": [str(tmp_path / "a.png")],
        "conversations": [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]],
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "data"))
    (record,) = read_records([str(tmp_path / "data")])
    assert open_image(record.images[0], "x").size == (8, 4)


def test_the_splits_of_a_saved_data_set(tmp_path):
    path = str(tmp_path / "data")
    table = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(path)
    assert len(read_records([path])) == 2
    assert len(read_records([f"{path}:test"])) == 1
    with pytest.raises(DataError, match=r"data:val: has no split 'val'; give .*data:SPLIT, of \['test', 'train'\]"):
        read_records([f"{path}:val"])


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_records(["hf://org/name"])) == len(read_records(["hf://org/name:validation"])) == 2
    assert asked == [("org/name", "train"), ("org/name", "validation")]


def test_what_can_not_be_read_is_refused(tmp_path):
    broken = tmp_path / "data.parquet"
    broken.write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    for path in (str(tmp_path / "empty"), "hf://org/none"):
        with pytest.raises(DataError, match=r"`datasets` cannot read it \(.+\)$"):
            read_records([path])
    with pytest.raises(DataError, match=r"data\.parquet: is broken \(.+\); write it anew"):
        read_records([str(broken)])
    with pytest.raises(DataError, match=r"none\.parquet: cannot be read \(No such file"):
        read_records([str(tmp_path / "none.parquet")])


def test_a_table_needs_turns(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(DataError, match=r"data\.parquet:1: a record needs 'messages' or .*, got {'text': 'a'}"):
        read_records([str(tmp_path / "data.parquet")])


def test_a_column_of_json_text(tmp_path):
    turns = json.dumps([{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}])
    table = datasets.Dataset.from_dict({"messages": [turns], "images": [["a.png"]], "tools": [None]})
    table.to_parquet(str(tmp_path / "data.parquet"))
    (record,) = read_records([str(tmp_path / "data.parquet")])
    assert record.images == [str(tmp_path / "a.png")]
    assert [message["role"] for message in record.messages] == ["user", "assistant"]


def test_a_column_that_is_not_understood_is_refused_at_once(tmp_path):
    table = datasets.Dataset.from_dict({"messages": ROWS["messages"][:1], "photo": ["a.png"]})
    table.to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(DataError, match=r"data\.parquet:1.*'photo' of a record: not understood"):
        read_records([str(tmp_path / "data.parquet")])


def test_a_table_without_rows_is_refused(tmp_path):
    datasets.Dataset.from_dict({"messages": []}).to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(DataError, match=r"data\.parquet: holds no records"):
        read_records([str(tmp_path / "data.parquet")])


@pytest.mark.parametrize("kind", ["values", "rows"])
def test_a_table_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, kind):
    path = str(tmp_path / "data.parquet")
    column = pyarrow.nulls(10**8) if kind == "rows" else pyarrow.array(["x" * 2**20] * 100)
    pyarrow.parquet.write_table(pyarrow.table({"messages": column}), path)
    assert os.path.getsize(path) < 2**20
    with pytest.raises(DataError, match=r"data\.parquet: unpacks to more than"):
        read_records([path])
