"""Mixtures: which records of which data sets, the same in every process."""

import json
import os

import pytest
import yaml

from diffusionvl.data.record import DataError
from diffusionvl.data.sources.mixture import chosen
from diffusionvl.data.sources.records import read_records

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def write_records(path, ids):
    path.write_text("\n".join(json.dumps({"id": each, "messages": TURNS}) for each in ids))


def mixture(folder, *entries):
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"datasets": list(entries)}))
    return str(folder / "mixture.yaml")


def ids(records):
    return [int(record.name.partition("(id ")[2][:-1]) for record in records]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("first:2", [0, 1]),
        ("first:0", []),
        ("end:2", [5, 6]),
        ("first:50%", [0, 1, 2, 3]),
        ("end:1%", [6]),
        ("first:28.6%", [0, 1, 2]),
        ("random:100%", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_which_records_are_taken(strategy, expected):
    assert list(chosen(strategy, 7, 0, "x")) == expected


def test_a_draw_depends_on_the_seed_alone():
    draws = [tuple(chosen("random:10%", 1000, seed, "x")) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert all(len(set(draw)) == 100 and list(draw) == sorted(draw) and draw[-1] < 1000 for draw in draws)


def test_data_sets_are_joined_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    write_records(tmp_path / "sub" / "one.jsonl", range(4))
    write_records(tmp_path / "two.jsonl", range(10, 14))
    path = mixture(
        tmp_path,
        {"json_path": "two.jsonl", "sampling_strategy": "end:1"},
        {"path": "sub/*.jsonl", "sampling_strategy": "random:50%"},
        {"path": str(tmp_path / "two.jsonl"), "sampling_strategy": "first:25%"},
    )
    found = [ids(read_records([path], seed=seed)) for seed in range(8)]
    assert all(each[0] == 13 and each[3] == 10 for each in found)
    assert {tuple(each[1:3]) for each in found} > {(0, 1)}
    assert ids(read_records([path, str(tmp_path / "two.jsonl")]))[4:] == [10, 11, 12, 13]


def test_each_data_set_has_an_image_root(tmp_path):
    turns = [{"role": "user", "content": "<image>"}, TURNS[1]]
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "a.png", "messages": turns}))
    path = mixture(tmp_path, {"path": "data.jsonl"}, {"path": "data.jsonl", "image_root": "images"})
    own = str(tmp_path / "images/a.png")
    assert [record.images for record in read_records([path])] == [[str(tmp_path / "a.png")], [own]]
    assert [record.images for record in read_records([path], "/root")] == [["/root/a.png"], [own]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "a mixture is a mapping with a list under `datasets`"),
        ("datasets: []", "a mixture is a mapping with a list under `datasets`"),
        ("datasets: {path: a}", "a mixture is a mapping with a list under `datasets`"),
        ("datasets: [a.json]", r"data set 1: needs `path` .*, got 'a\.json'"),
        ("datasets: [{}]", "data set 1: needs `path`"),
        ("datasets: [{path: a, json_path: b}]", "data set 1: needs `path`"),
        ("datasets: [{path: a, weight: 3}]", "data set 1: needs `path` .*'weight': 3"),
        (
            "datasets: [{path: data.jsonl, sampling_strategy: some}]",
            "must be all, first:N, end:N or random:N, got 'some'",
        ),
        ("datasets: [{path: data.jsonl, sampling_strategy: 'first:-1'}]", "must be all, first:N, .* got 'first:-1'"),
        ("datasets: [{path: data.jsonl, sampling_strategy: 'first:9'}]", "data set 1: .* asks for 9 of 2 records"),
        ("datasets: [{path: data.jsonl, sampling_strategy: 'first:101%'}]", "data set 1: .* asks for 3 of 2 records"),
        ("datasets: [{path: none.jsonl}]", r"none\.jsonl: cannot be read"),
        ("datasets: [{", "broken YAML"),
    ],
)
def test_a_bad_mixture_is_refused(tmp_path, content, message):
    write_records(tmp_path / "data.jsonl", range(2))
    (tmp_path / "mixture.yaml").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_records([str(tmp_path / "mixture.yaml")])
    assert str(error.value).startswith(str(tmp_path))


def test_a_missing_mixture_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.yaml: cannot be read"):
        read_records([str(tmp_path / "none.yaml")])


def test_columns_and_ignored_keys_are_those_of_a_data_set(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"dialogue": TURNS, "score": 1}))
    with pytest.raises(DataError, match="a record needs"):
        read_records([str(tmp_path / "data.jsonl")])
    with pytest.raises(DataError, match=r"data\.jsonl:1: 'score' of a record: not understood"):
        read_records([mixture(tmp_path, {"path": "data.jsonl", "columns": {"messages": "dialogue"}})])
    path = mixture(tmp_path, {"path": "data.jsonl", "columns": {"messages": "dialogue"}, "ignore": ["score"]})
    assert len(read_records([path])) == 1


BOMB = "\n".join(
    ["a: &a [x, x]", *(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))]
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB + "\ndatasets: [*k]", "repeats a list or mapping by the alias 'a'"),
        ("datasets: &a [*a]", "repeats a list or mapping by the alias 'a'"),
        ("datasets: " + "[" * 2000, "more than 20 deep"),
        ("x" * 2**21, "has more than 1048576 bytes"),
        ("datasets: [{path: mixture.yaml}]", "a mixture that names itself"),
        ("datasets: [{path: ./x/../mixture.yaml}]", "a mixture that names itself"),
        ("datasets: [{path: data.jsonl, sampling_strategy: 'first:0'}]", "takes no record"),
        ("datasets: [{path: data.jsonl, sampling_strategy: 'first:0%'}]", "takes no record"),
        (f"datasets: [{{path: data.jsonl, sampling_strategy: 'first:{'9' * 5000}'}}]", "must be all, first:N"),
        (f"datasets: [{{path: data.jsonl, sampling_strategy: 'first:{'9' * 400}%'}}]", "must be all, first:N"),
        ("datasets: [{path: data.jsonl}]\nseed: 3", "and nothing else"),
        ("datasets: [{path: data.jsonl, columns: [a]}]", "columns must map names to names"),
        ("datasets: [{path: data.jsonl, columns: {images: 3}}]", "columns must map names to names"),
        ("datasets: [{path: data.jsonl, ignore: score}]", "ignore must be a list of keys"),
        ("datasets: [{path: 2026-01-01}]", "path and image_root must be texts"),
        ("datasets: [{path: null}]", "path and image_root must be texts"),
        ("datasets: [{path: data.jsonl, image_root: [a]}]", "path and image_root must be texts"),
        ("a: !!python/object:os.system {}", "broken YAML"),
        ("\0", "broken YAML"),
        ("datasets: [{path: 2026-99-99}]", "broken YAML"),
        (f"datasets: {'9' * 5000}", "broken YAML"),
        ("datasets: [{path: a, path: b}]", "key 'path' is given twice"),
    ],
)
def test_a_mixture_that_would_never_end_or_says_something_odd_is_refused(tmp_path, content, message):
    (tmp_path / "x").mkdir()
    write_records(tmp_path / "data.jsonl", range(2))
    (tmp_path / "mixture.yaml").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_records([str(tmp_path / "mixture.yaml")])
    assert len(str(error.value)) < 600


def test_two_mixtures_that_name_one_another_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("datasets: [{path: b.yaml}]")
    (tmp_path / "b.yaml").write_text("datasets: [{path: a.yaml}]")
    with pytest.raises(DataError, match="names itself"):
        read_records([str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".tar", ".yaml"])
def test_a_pipe_is_no_file_of_records(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(DataError, match="is not a regular file"):
        read_records([str(tmp_path / f"pipe{suffix}")])
