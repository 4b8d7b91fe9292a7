"""Layouts: several become one, and a bad record gives one error that names the place, the value and the remedy."""

import os

import pytest
from PIL import Image

from diffusionvl.data.layouts import ImageRoot, parse_record
from diffusionvl.data.record import DataError, Video

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def text(content):
    return {"type": "text", "text": content}


def image(path):
    return {"type": "image", "image": path}


def with_images(count):
    return {"role": "user", "content": [{"type": "image"} for _ in range(count)]}


def video_part(**settings):
    return {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", **settings}]}, ANSWER]}


def parse(root, **record):
    return parse_record(record, "data.jsonl:7", ImageRoot(root))


def contents(record):
    return [message["content"] for message in record.messages]


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
LLAMA_FACTORY = {
    "id": "x1",
    "images": ["a.png", "b.png"],
    "messages": [
        {"role": "user", "content": "<image>which?"},
        {"role": "assistant", "content": "this"},
        {"role": "user", "content": "<image>and ?"},
        {"role": "assistant", "content": "that"},
    ],
}


@pytest.mark.parametrize("raw", [LLAVA, MESSAGES, LLAMA_FACTORY], ids=["llava", "messages", "llama_factory"])
def test_all_layouts_give_the_same_record(tmp_path, raw):
    record = parse(tmp_path, **raw)
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    assert [message["role"] for message in record.messages] == ["user", "assistant"] * 2
    assert contents(record) == [[image(a), text("which?")], [text("this")], [image(b), text("and ?")], [text("that")]]
    assert record.images == [a, b]
    assert record.name == "data.jsonl:7 (id 'x1')"


def test_images_fill_their_places_in_order(tmp_path):
    user = {"role": "user", "content": [text("1"), {"type": "image"}, image("own.png"), text("2"), {"type": "image"}]}
    record = parse(tmp_path, images=["a.png", "b.png"], messages=[user, ANSWER])
    assert record.images == [str(tmp_path / name) for name in ("a.png", "own.png", "b.png")]
    assert [part["type"] for part in contents(record)[0]] == ["text", "image", "image", "text", "image"]


def video(*paths, **settings):
    return {"type": "video", "video": Video(paths[0] if len(paths) == 1 else paths, settings)}


@pytest.mark.parametrize(
    "raw",
    [
        {"videos": ["a.mp4"], "messages": [{"role": "user", "content": [{"type": "video"}, text("which?")]}, ANSWER]},
        {"videos": ["a.mp4"], "messages": [{"role": "user", "content": "<video>which?"}, ANSWER]},
        {
            "video": "a.mp4",  # LLaVA-Video marks a video as an image
            "conversations": [{"from": "human", "value": "<image>\nwhich?"}, {"from": "gpt", "value": "a"}],
        },
        {
            "video": "a.mp4",
            "conversations": [{"from": "human", "value": "which?<video>"}, {"from": "gpt", "value": "a"}],
        },
    ],
)
def test_all_layouts_take_videos(tmp_path, raw):
    record = parse(tmp_path, **raw)
    assert contents(record) == [[video(str(tmp_path / "a.mp4")), text("which?")], [text("a")]]
    assert (record.images, record.videos) == ([], [Video(str(tmp_path / "a.mp4"))])


def test_videos_stand_beside_images_and_say_which_frames_are_taken(tmp_path):
    own = {"type": "video", "video": ["1.png", "2.png"], "max_frames": 2, "fps": None}
    user = {"role": "user", "content": [{"type": "video", "fps": 0.5}, {"type": "image"}, own]}
    record = parse(tmp_path, images=["a.png"], videos=["a.mp4"], messages=[user, ANSWER])
    a, b, one, two = (str(tmp_path / name) for name in ("a.mp4", "a.png", "1.png", "2.png"))
    assert contents(record)[0] == [video(a, fps=0.5), image(b), video(one, two, max_frames=2)]


@pytest.mark.parametrize("speaker", ["from", "role"])
def test_several_marks_stay_where_they_stand(tmp_path, speaker):
    keys = {"from": ("conversations", "value", "human"), "role": ("messages", "content", "user")}
    turns, value, user = keys[speaker]
    answer = {speaker: "gpt" if speaker == "from" else "assistant", value: "a"}
    asked = {speaker: user, value: "from <image> to <image>?"}
    record = parse(tmp_path, images=["a.png", "b.png"], **{turns: [asked, answer]})
    a, b = record.images
    assert contents(record)[0] == [text("from "), image(a), text(" to "), image(b), text("?")]


def test_only_llava_moves_a_single_mark(tmp_path):
    """As its training code does; in the other layouts an image stands where it is written."""
    a = image(str(tmp_path / "a.png"))
    turns = [{"from": "human", "value": "what is <image> this?"}, {"from": "gpt", "value": "a"}]
    assert contents(parse(tmp_path, image="a.png", conversations=turns))[0] == [a, text("what is  this?")]
    user = {"role": "user", "content": "what is <image> this?"}
    found = contents(parse(tmp_path, image="a.png", messages=[user, ANSWER]))[0]
    assert found == [text("what is "), a, text(" this?")]


def test_a_mark_in_a_message_without_images_is_text(tmp_path):
    user = {**USER, "content": "an <image> tag"}
    assert contents(parse(tmp_path, messages=[user, ANSWER]))[0] == [text("an <image> tag")]
    with pytest.raises(DataError, match="fewer images than places"):
        parse(tmp_path, images=[], messages=[user, ANSWER])


def test_pictures_may_be_bytes_or_images(tmp_path):
    """As tables have them."""
    picture = Image.new("RGB", (2, 2))
    stored = [{"bytes": b"1", "path": "x.png"}, {"bytes": None, "path": "x.png"}, b"2", picture]
    record = parse(tmp_path, images=stored, messages=[with_images(4), ANSWER])
    assert record.images == [b"1", str(tmp_path / "x.png"), b"2", picture]
    assert parse(tmp_path, image=b"2", messages=[with_images(1), ANSWER]).images == [b"2"]


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
    parts = [{"type": "text", "text": "q", "image": None}]  # how a table writes the parts of a message
    assert contents(parse(tmp_path, id=None, messages=[{**USER, "content": parts}, ANSWER]))[0] == [text("q")]


INSIDE = ["a.png", "sub/a.png", "sub/../a.png", "./a.png", "..a.png"]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("path", INSIDE)
def test_paths_start_from_the_root(tmp_path, path, given):
    assert ImageRoot(tmp_path, given).locate(path, "x") == os.path.normpath(tmp_path / path)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("path", ["../a.png", "sub/../../a.png", "..", "../root-2/a.png"])
def test_a_relative_path_may_not_leave_the_root(tmp_path, path, given):
    root = ImageRoot(tmp_path / "root", given)
    with pytest.raises(DataError, match=r"^x: image '.*' leaves the folder '.*root'.*; move it, or set image_root"):
        root.locate(path, "x")


def test_an_absolute_path_may_not_leave_a_root_that_the_user_named(tmp_path):
    inside, outside = str(tmp_path / "root/a.png"), str(tmp_path / "root-2/a.png")
    for given in (True, False):
        assert ImageRoot(tmp_path / "root", given).locate(inside, "x") == inside
    assert ImageRoot(tmp_path / "root").locate(outside, "x") == outside
    assert ImageRoot(tmp_path.parents[-1], given=True).locate(outside, "x") == outside
    with pytest.raises(DataError, match="leaves the folder"):
        ImageRoot(tmp_path / "root", given=True).locate(outside, "x")


def test_a_relative_root_is_a_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ImageRoot(type(tmp_path)("data")).locate("a.png", "x") == "data/a.png"
    assert ImageRoot(type(tmp_path)()).locate("a.png", "x") == "a.png"
    with pytest.raises(DataError, match="leaves the folder"):
        ImageRoot(type(tmp_path)()).locate("../a.png", "x")


@pytest.mark.parametrize("raw", [None, 3, "text", [], [USER, ANSWER]])
def test_a_record_must_be_an_object(tmp_path, raw):
    with pytest.raises(DataError, match=r"data\.jsonl:7: a record must be an object") as error:
        parse_record(raw, "data.jsonl:7", ImageRoot(tmp_path))
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
    "part is a sound": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, ["a part must be", "audio"]),
    "no video for a part": (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        ["fewer videos", "paths"],
    ),
    "a video too many": ({"videos": ["a.mp4"], "messages": [USER, ANSWER]}, ["1 more video(s)", "'<video>'"]),
    "a video is a number": ({"video": [3], "messages": [USER, ANSWER]}, ["a video must be given by its path", "got 3"]),
    "a video of no frames": ({"videos": [[]], "messages": [USER, ANSWER]}, ["by a list of its frames", "got []"]),
    "a video's unknown key": (video_part(frames=3), ["does not know 'frames'", "'fps'"]),
    "a video's key is text": (video_part(fps="two"), ["fps of a video must be a number", "'two'"]),
    "a video's key is negative": (video_part(fps=-1), ["fps of a video must be a number", "-1"]),
    "part's text is null": ({"messages": [{"role": "user", "content": [text(None)]}]}, ["a part must be", "None"]),
    "part's path is a number": ({"messages": [{"role": "user", "content": [image(3)]}]}, ["by its path", "got 3"]),
    "part's path is empty": ({"messages": [{"role": "user", "content": [image("")]}]}, ["by its path", "got ''"]),
    "half a character": ({"messages": [{"role": "user", "content": "\ud83d"}]}, ["surrogate", r"\ud83d", "mend"]),
    "images are a number": ({"images": 0, "messages": [USER, ANSWER]}, ["a path or a list of paths", "got 0"]),
    "images are an object": ({"image": {"path": "a"}, "messages": [USER]}, ["by its path", "'path'"]),
    "an image is null": ({"images": [None], "messages": [with_images(1)]}, ["by its path", "None"]),
    "an image is empty": ({"images": [""], "messages": [with_images(1)]}, ["by its path", "''"]),
    "too many images": (
        {"images": ["a", "b"], "messages": [with_images(1), ANSWER]},
        ["1 more image", "add image parts or '<image>'"],
    ),
    "too few images": ({"image": "a", "messages": [with_images(2), ANSWER]}, ["fewer images", "add paths"]),
    "mark without image": ({"conversations": [{"from": "human", "value": "<image>"}]}, ["fewer images", "add paths"]),
    "two marks in a message, one image": (
        {"images": ["a"], "messages": [{"role": "user", "content": "<image>q<image>"}, ANSWER]},
        ["fewer images", "add paths"],
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
