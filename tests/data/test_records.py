"""Reading records: files of every kind, alone, many and mixed, and a bad one gives one error that names it."""

import json

import pytest

from diffusionvl.data.record import DataError
from diffusionvl.data.sources.records import read_records

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
RECORD = {"messages": [USER, ANSWER]}


def text(content):
    return {"type": "text", "text": content}


def write(folder, content, name="data.jsonl"):
    """A file of that text, or of those lines of JSON."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)), encoding="utf-8")
    return str(path)


def names(records):
    return [record.name for record in records]


def test_lines_and_lists_hold_the_same_records(tmp_path):
    raws = [{**RECORD, "id": "ä"}, {"messages": [{**USER, "content": 'a "ü" \\ \u2028 {[]}'}, ANSWER]}, RECORD]
    lines = read_records([write(tmp_path, raws)])
    assert names(lines) == [f"{tmp_path}/data.jsonl:1 (id 'ä')", *(f"{tmp_path}/data.jsonl:{n}" for n in (2, 3))]
    for indent in (None, 1):
        for ascii_only in (True, False):
            path = write(tmp_path, json.dumps(raws, indent=indent, ensure_ascii=ascii_only), "data.json")
            listed = read_records([path])
            assert [record.messages for record in listed] == [record.messages for record in lines]
    begins = [number for number, line in enumerate((tmp_path / "data.json").read_text().split("\n"), 1) if line == " {"]
    assert names(listed) == [
        f"{path}:{begins[0]}, record 1 (id 'ä')",
        *(f"{path}:{begin}, record {number}" for number, begin in enumerate(begins[1:], 2)),
    ]


def test_strings_in_a_list_may_hold_brackets_quotes_and_any_letters(tmp_path):
    raws = [{"id": n, "messages": [{**USER, "content": 'é€😀 "[{\\\\' * n + "]"}, ANSWER]} for n in range(20)]
    for indent in (None, 2):
        content = "\ufeff \n" + json.dumps(raws, indent=indent, ensure_ascii=False) + " \n\n"
        records = read_records([write(tmp_path, content, "data.json")])
        found = [record.messages[0]["content"][0]["text"] for record in records]
        assert found == [raw["messages"][0]["content"] for raw in raws]
        ending = content.rindex("]")
        with pytest.raises(DataError, match=r"data\.json:\d+: broken JSON .*: Expecting"):
            read_records([write(tmp_path, content[:ending] + content[ending + 1 :], "data.json")])


def test_records_are_read_when_they_are_asked_for(tmp_path):
    path = write(tmp_path, [RECORD, {"id": 2, **RECORD}])
    records = read_records([path])
    assert len(records) == 2
    write(tmp_path, [RECORD, {"id": 3, **RECORD}])
    assert records[1].name.endswith("(id 3)")
    with pytest.raises(IndexError):
        records[2]


def test_records_keep_the_order_of_files_and_lines(tmp_path):
    one = write(tmp_path, [{"id": 1, **RECORD}, {"id": 2, **RECORD}])
    two = write(tmp_path, json.dumps([{"id": 3, **RECORD}]), "more.json")
    found = [name.partition(" (id ")[2] for name in names(read_records([two, one]))]
    assert found == ["3)", "1)", "2)"]
    assert len(read_records([str(tmp_path / "*.json*")])) == 3


def test_relative_paths_start_from_the_file_or_from_image_root(tmp_path):
    parts = [{"type": "image"}, {"type": "image"}]
    path = write(tmp_path, [{"images": ["sub/a.png", "b.png"], "messages": [{**USER, "content": parts}, ANSWER]}])
    assert read_records([path])[0].images == [str(tmp_path / "sub/a.png"), str(tmp_path / "b.png")]
    assert read_records([path], "/root")[0].images == ["/root/sub/a.png", "/root/b.png"]


def test_a_path_that_leaves_image_root_is_refused_at_once(tmp_path):
    path = write(tmp_path, [{"image": "../a.png", "conversations": [{"from": "human", "value": "<image>"}]}])
    with pytest.raises(DataError, match=r"data\.jsonl:1: image '\.\./a\.png' leaves the folder '/root'"):
        read_records([path], "/root")


def test_text_is_kept_to_the_letter(tmp_path):
    odd = '  < image> \u2028\x85 "ö"\t<|im_end|> 😀\n'
    raw = {"messages": [{"role": "system", "content": odd}, {"role": "user", "content": odd}, ANSWER]}
    (record,) = read_records([write(tmp_path, json.dumps(raw, ensure_ascii=False) + "\n")])
    assert [message["content"] for message in record.messages][:2] == [[text(odd)]] * 2


def test_a_byte_order_mark_blank_lines_and_other_line_ends_are_no_content(tmp_path):
    line = json.dumps(RECORD).encode()
    path = write(tmp_path, b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert names(read_records([path])) == [f"{path}:1", f"{path}:3"]


BAD = [
    ("data.jsonl", '{"messages": []', [":1: broken JSON at column 16", "mend"]),
    ("data.jsonl", '\n\n{"messages" []}\n', [":3: broken JSON at column 13", "mend"]),
    ("data.jsonl", '{"messages": ' + "[" * 100_000, [":1: maximum recursion", "drop"]),
    ("data.jsonl", '{"id": ' + "1" * 10_000 + "}", [":1: Exceeds the limit", "drop"]),
    ("data.jsonl", [RECORD, {"messages": []}], [":2: has no assistant turn"]),
    ("data.json", '[\n{"id": 1},\n{"id": }]', [":2, record 1 (id 1): a record needs 'messages'"]),
    ("data.json", '[\n{"id": }]', [":2: broken JSON at column 8", "mend"]),
    ("data.json", '[{"messages": ' + "[" * 100_000, [":1: maximum recursion"]),
    ("data.json", "[1 2]", [":1: broken JSON at column 4: Expecting ','"]),
    ("data.json", "[1, 2]", ["[1, 2]", "not a list of records"]),
    ("data.json", '[{"id": 1, "id": 2}]', [":1: the key 'id' stands twice"]),
    ("data.jsonl", '{"a": {"b": 1, "b": 1}}', [":1: the key 'b' stands twice"]),
    ("data.json", json.dumps([RECORD]) + "\n]", [":2: broken JSON at column 1: Extra data"]),
    (
        "data.json",
        "[" + json.dumps(RECORD) + "\n " + json.dumps(RECORD),
        [":2: broken JSON at column 2: Expecting ','"],
    ),
    ("data.json", "[" + json.dumps(RECORD), [":1: broken JSON at column", "Expecting ','"]),
    ("data.json", "[" + json.dumps(RECORD) + ",]", [":1: broken JSON at column", "Expecting value"]),
    ("data.json", '{"a": 1}\n{"a": 2}\n', [":2: broken JSON", "Extra data"]),
    ("data.json", '{"messages": []}', ["{'messages': []}", "not a list", ".jsonl"]),
    ("data.json", "null", ["None", "not a list", ".jsonl"]),
    ("data.json", "[]", ["no records", "add"]),
    ("data.json", "", [":1: broken JSON", "mend"]),
    ("data.jsonl", "", ["no records", "add"]),
    ("data.jsonl", "\n \n", ["no records", "add"]),
    (
        "data.jsonl",
        json.dumps(RECORD).encode() + b'\n{"messages": "\xfcber"}',
        [":2: byte 0xfc", "save the file as UTF-8"],
    ),
    ("data.json", b'[\n{"messages": "\xfcber"}]', [":2: byte 0xfc", "save the file as UTF-8"]),
    ("data.jsonl", "{}".encode("utf-16"), [":1: byte 0xff", "save the file as UTF-8"]),
    ("data.csv", "id", ["unknown kind of file '.csv'", ".jsonl, .json"]),
    ("data", "{}", ["unknown kind of file ''", ".jsonl, .json"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BAD, ids=range(len(BAD)))
def test_a_bad_file_is_refused(tmp_path, name, content, parts):
    path = write(tmp_path, content, name)
    with pytest.raises(DataError) as error:
        read_records([path])
    assert str(error.value).startswith(path)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_without_a_check_a_bad_line_is_told_when_it_is_read(tmp_path):
    path = write(tmp_path, json.dumps(RECORD) + '\n{"messages": [\n' + json.dumps(RECORD))
    with pytest.raises(DataError, match="broken JSON"):
        read_records([path])
    records = read_records([path], check=False)
    assert len(records) == 3
    assert (records[0].name, records[2].name) == (f"{path}:1", f"{path}:3")
    with pytest.raises(DataError, match=r"data\.jsonl:2: broken JSON"):
        records[1]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file or directory\); check"):
        read_records([str(tmp_path / "none.jsonl")])
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder\.json: is not a regular file; give"):
        read_records([str(tmp_path / "folder.json")])
    with pytest.raises(DataError, match=r"none: there is no such file; give a \.jsonl"):
        read_records([str(tmp_path / "none")])
    with pytest.raises(DataError, match=r"none-\*\.jsonl: matches no file"):
        read_records([str(tmp_path / "none-*.jsonl")])


def test_one_empty_file_among_others_is_refused(tmp_path):
    full, empty = write(tmp_path, [RECORD]), write(tmp_path, "", "empty.jsonl")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no records"):
        read_records([full, empty])
