"""Records: two layouts become one, and a bad input gives one error that names the place, the value and the remedy."""

import json

import pytest

from diffusionvl.data.records import DataError, parse_record, read_records

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def text(content):
    return {"type": "text", "text": content}


def image(path):
    return {"type": "image", "image": path}


def with_images(count):
    return {"role": "user", "content": [{"type": "image"} for _ in range(count)]}


def parse(root, **record):
    return parse_record(record, "data.jsonl:7", root)


def contents(record):
    return [message["content"] for message in record.messages]


def write(folder, content, name="data.jsonl"):
    """A file of that text, or of those lines of JSON."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)), encoding="utf-8")
    return str(path)


LLAVA = {
    "id": "x1",
    "image": ["a.png", "b.png"],
    "conversations": [
        {"from": "human", "value": "<image>\nwhich?"},
        {"from": "gpt", "value": "this"},
        {"from": "human", "value": "and <image>?"},
        {"from": "gpt", "value": "that"},
    ],
}
MESSAGES = {
    "id": "x1",
    "images": ["a.png", "b.png"],
    "messages": [
        {"role": "user", "content": [{"type": "image"}, text("which?")]},
        {"role": "assistant", "content": "this"},
        {"role": "user", "content": [{"type": "image"}, text("and ?")]},
        {"role": "assistant", "content": [text("that")]},
    ],
}


@pytest.mark.parametrize("raw", [LLAVA, MESSAGES], ids=["llava", "messages"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_both_layouts_give_the_same_record(tmp_path, raw, suffix):
    path = write(tmp_path, [raw] if suffix == ".jsonl" else json.dumps([raw]), f"data{suffix}")
    (record,) = read_records([path])
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    assert [message["role"] for message in record.messages] == ["user", "assistant"] * 2
    assert contents(record) == [[image(a), text("which?")], [text("this")], [image(b), text("and ?")], [text("that")]]
    assert record.images == [a, b]
    assert record.name == f"{path}:1 (id 'x1')"


def test_records_keep_the_order_of_files_and_lines(tmp_path):
    one = write(tmp_path, [{"id": 1, "messages": [USER, ANSWER]}, {"id": 2, "messages": [USER, ANSWER]}])
    two = write(tmp_path, json.dumps([{"id": 3, "messages": [USER, ANSWER]}]), "more.json")
    names = [record.name for record in read_records([two, one])]
    assert names == [f"{two}:1 (id 3)", f"{one}:1 (id 1)", f"{one}:2 (id 2)"]


def test_image_root_moves_relative_paths_only(tmp_path):
    path = write(tmp_path, [{"images": ["sub/a.png", "/abs/b.png"], "messages": [with_images(2), ANSWER]}])
    assert read_records([path])[0].images == [str(tmp_path / "sub/a.png"), "/abs/b.png"]
    assert read_records([path], "/root")[0].images == ["/root/sub/a.png", "/abs/b.png"]


def test_images_fill_their_places_in_order(tmp_path):
    user = {"role": "user", "content": [text("1"), {"type": "image"}, image("own.png"), text("2"), {"type": "image"}]}
    record = parse(tmp_path, images=["a.png", "b.png"], messages=[user, ANSWER])
    assert record.images == [str(tmp_path / name) for name in ("a.png", "own.png", "b.png")]
    assert [part["type"] for part in contents(record)[0]] == ["text", "image", "image", "text", "image"]


def test_several_marks_stay_where_they_stand(tmp_path):
    turns = [{"from": "human", "value": "from <image> to <image>?"}, {"from": "gpt", "value": "a"}]
    record = parse(tmp_path, image=["a.png", "b.png"], conversations=turns)
    a, b = record.images
    assert contents(record)[0] == [text("from "), image(a), text(" to "), image(b), text("?")]


def test_text_is_kept_to_the_letter(tmp_path):
    odd = '  <image> \u2028\x85 "ö"\t<|im_end|> 😀\n'
    raw = {"messages": [{"role": "system", "content": odd}, {"role": "user", "content": odd}, ANSWER]}
    path = write(tmp_path, json.dumps(raw, ensure_ascii=False) + "\n")
    assert contents(read_records([path])[0])[:2] == [[text(odd)]] * 2


@pytest.mark.parametrize(
    "turns", [[USER, {"role": "assistant", "content": ""}], [{"role": "user", "content": []}, ANSWER]]
)
def test_empty_texts_are_records(tmp_path, turns):
    assert len(parse(tmp_path, messages=turns).messages) == 2


@pytest.mark.parametrize("absent", [None, "", []])
def test_absent_values_may_be_written_out(tmp_path, absent):
    record = parse(tmp_path, image=absent, conversations=None, messages=[{**USER, "from": None, "value": None}, ANSWER])
    assert contents(record) == [[text("q")], [text("a")]]
    assert record.images == []


def test_a_byte_order_mark_blank_lines_and_other_line_ends_are_no_content(tmp_path):
    line = json.dumps({"messages": [USER, ANSWER]}).encode()
    path = write(tmp_path, b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert [record.name for record in read_records([path])] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("data.jsonl", '{"messages": []', [":1: broken JSON at column 16", "mend"]),
        ("data.jsonl", '\n\n{"messages" []}\n', [":3: broken JSON at column 13", "mend"]),
        ("data.json", '[\n{"id": 1},\n{"id": }]', [":3: broken JSON at column 8", "mend"]),
        ("data.json", '{"a": 1}\n{"a": 2}\n', [":2: broken JSON", "Extra data"]),
        ("data.json", '{"messages": []}', ["{'messages': []}", "not a list", ".jsonl"]),
        ("data.json", "null", ["None", "not a list", ".jsonl"]),
        ("data.json", "[]", ["no records", "add"]),
        ("data.json", "", [":1: broken JSON", "mend"]),
        ("data.jsonl", "", ["no records", "add"]),
        ("data.jsonl", "\n \n", ["no records", "add"]),
        ("data.jsonl", '{}\n{"messages": "\xfcber"}'.encode("latin-1"), [":2: byte 0xfc", "save the file as UTF-8"]),
        ("data.jsonl", "{}".encode("utf-16"), [":1: byte 0xff", "save the file as UTF-8"]),
        ("data.parquet", b"PAR1\xff\xfe", ["unknown kind of file '.parquet'", ".jsonl or .json"]),
        ("data", "{}", ["unknown kind of file ''", ".jsonl or .json"]),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, content, parts):
    path = write(tmp_path, content, name)
    with pytest.raises(DataError) as error:
        read_records([path])
    assert str(error.value).startswith(path)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: can not be read \(No such file or directory\); give"):
        read_records([str(tmp_path / "none.jsonl")])
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder\.json: can not be read \(Is a directory\); give"):
        read_records([str(tmp_path / "folder.json")])


def test_one_empty_file_among_others_is_refused(tmp_path):
    full, empty = write(tmp_path, [{"messages": [USER, ANSWER]}]), write(tmp_path, "", "empty.jsonl")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no records"):
        read_records([full, empty])


@pytest.mark.parametrize("raw", [None, 3, "text", [], [USER, ANSWER]])
def test_a_record_must_be_an_object(tmp_path, raw):
    with pytest.raises(DataError, match=r"data\.jsonl:7: a record must be an object") as error:
        parse_record(raw, "data.jsonl:7", tmp_path)
    assert repr(raw)[:70] in str(error.value)


BAD = {
    "neither layout": ({"text": "q"}, ["list 'messages' or 'conversations'", "{'id': 'x', 'text': 'q'}"]),
    "turns are an object": ({"messages": {"role": "user"}}, ["list 'messages' or 'conversations'"]),
    "turns are null": ({"messages": None}, ["list 'messages' or 'conversations'"]),
    "no turns": ({"messages": []}, ["no assistant turn", "add one"]),
    "no turns, LLaVA": ({"conversations": []}, ["no assistant turn", "add one"]),
    "no assistant": ({"messages": [USER]}, ["no assistant turn", "add one"]),
    "two layouts": ({"messages": [USER], "conversations": [USER]}, ["both 'messages' and 'conversations'", "keep one"]),
    "two kinds of images": (
        {"images": ["a"], "image": "b", "messages": [USER]},
        ["both 'images' and 'image'", "keep one"],
    ),
    "turn is text": ({"messages": ["hello", ANSWER]}, ["a turn must be an object", "'hello'"]),
    "turn is null": ({"messages": [None, ANSWER]}, ["a turn must be an object", "None"]),
    "unknown role": ({"messages": [{"role": "tool", "content": "q"}]}, ["unknown role 'tool'", "known are"]),
    "unknown role, LLaVA": ({"conversations": [{"from": "bot", "value": "q"}]}, ["unknown role 'bot'", "known are"]),
    "no role": ({"messages": [{"content": "q"}]}, ["unknown role None", "known are"]),
    "role is a list": ({"messages": [{"role": ["user"], "content": "q"}]}, ["unknown role ['user']", "known are"]),
    "role and from": ({"messages": [{**USER, "from": "gpt"}]}, ["both 'role' and 'from'", "keep one"]),
    "content and value": ({"messages": [{**USER, "value": "p"}]}, ["both 'content' and 'value'", "keep one"]),
    "no content": ({"messages": [{"role": "user"}]}, ["text or a list of parts", "None"]),
    "content is null": ({"messages": [{"role": "user", "content": None}]}, ["text or a list of parts", "None"]),
    "content is a number": ({"conversations": [{"from": "human", "value": 3}]}, ["text or a list of parts", "3"]),
    "content is an object": ({"messages": [{"role": "user", "content": text("q")}]}, ["text or a list of parts"]),
    "part is text": ({"messages": [{"role": "user", "content": ["q"]}]}, ["a part must be", "'q'"]),
    "part is a video": ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, ["a part must be", "video"]),
    "part's text is null": ({"messages": [{"role": "user", "content": [text(None)]}]}, ["a part must be", "None"]),
    "part's path is a number": ({"messages": [{"role": "user", "content": [image(3)]}]}, ["must be a path", "got 3"]),
    "part's path is empty": ({"messages": [{"role": "user", "content": [image("")]}]}, ["must be a path", "got ''"]),
    "half a character": ({"messages": [{"role": "user", "content": "\ud83d"}]}, ["surrogate", r"\ud83d", "mend"]),
    "images are a number": ({"images": 0, "messages": [USER, ANSWER]}, ["a path or a list of paths", "got 0"]),
    "images are an object": ({"image": {"path": "a"}, "messages": [USER]}, ["a path or a list of paths", "'path'"]),
    "an image is null": ({"images": [None], "messages": [with_images(1)]}, ["a path or a list of paths", "[None]"]),
    "an image is empty": ({"images": [""], "messages": [with_images(1)]}, ["a path or a list of paths", "['']"]),
    "too many images": (
        {"images": ["a", "b"], "messages": [with_images(1), ANSWER]},
        ["1 more image", "add image parts"],
    ),
    "too few images": ({"image": "a", "messages": [with_images(2), ANSWER]}, ["fewer images", "add paths"]),
    "mark without image": ({"conversations": [{"from": "human", "value": "<image>"}]}, ["fewer images", "add paths"]),
    "mark in a message": (
        {"images": ["a"], "messages": [{"role": "user", "content": "<image>q"}, ANSWER]},
        ["1 more image", "add image parts"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_refused(tmp_path, case):
    raw, parts = BAD[case]
    with pytest.raises(DataError) as error:
        parse(tmp_path, id="x", **raw)
    message = str(error.value)
    assert message.startswith("data.jsonl:7 (id 'x')")
    assert all(part in message for part in parts), message
    assert len(message) < 300


def test_a_long_value_is_cut_in_the_message(tmp_path):
    with pytest.raises(DataError) as error:
        parse(tmp_path, messages=["x" * 10_000])
    assert len(str(error.value)) < 200
