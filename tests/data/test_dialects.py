"""Dialects: many become one, and a bad record gives one error that names the place, the value and the remedy."""

import base64
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from diffusionvl.data.record import DataError, SizedPicture, UnknownKeys, Video, WebPicture
from diffusionvl.data.record_parser import RecordParser
from diffusionvl.data.references import ImageRoot

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def text(content):
    return {"type": "text", "text": content}


def image(path):
    return {"type": "image", "image": path}


def with_parts(*parts):
    return {"role": "user", "content": [*parts]}


def with_text(content):
    return {"role": "user", "content": content}


VIDEO = {"role": "user", "content": [{"type": "video"}]}


def with_images(count):
    return {"role": "user", "content": [{"type": "image"} for _ in range(count)]}


def video_part(**settings):
    return {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", **settings}]}, ANSWER]}


def parse(root, **record):
    return RecordParser(ImageRoot(root)).parse(record, "data.jsonl:7")


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


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": []}, {"image": ""}, {"image": None}])
@pytest.mark.parametrize("content", ["an <image> tag", [{"type": "text", "text": "<image>"}], [{"type": "image"}]])
def test_a_place_without_its_image_is_refused(tmp_path, images, content):
    with pytest.raises(DataError, match=r"0 image\(s\) for 1 place\(s\)"):
        parse(tmp_path, **images, messages=[{**USER, "content": content}, ANSWER])
    turns = [{"from": "human", "value": content}, {"from": "gpt", "value": "a"}]
    with pytest.raises(DataError, match=r"0 image\(s\) for 1 place\(s\)"):
        parse(tmp_path, **images, conversations=turns)


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
        RecordParser(ImageRoot(tmp_path)).parse(raw, "data.jsonl:7")
    assert repr(raw)[:3] in str(error.value)


BAD = {
    "neither layout": ({"text": "q"}, ["needs 'messages' or 'conversations'", "{'id': 'x', 'text': 'q'}"]),
    "turns are an object": ({"messages": {"role": "user"}}, ["'messages' must be a list", "{'role': 'user'}"]),
    "turns are null": ({"messages": None}, ["needs 'messages' or 'conversations'"]),
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
    "unknown role": ({"messages": [{"role": "critic", "content": "q"}]}, ["unknown role 'critic'", "known are"]),
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
        ["0 video(s) for 1 place(s)", "give one"],
    ),
    "a video too many": ({"videos": ["a.mp4"], "messages": [USER, ANSWER]}, ["1 video(s) for 0 place(s)", "'<video>'"]),
    "a video is a number": (
        {"video": [3], "messages": [VIDEO, ANSWER]},
        ["a video must be given by its path", "got 3"],
    ),
    "a video of no frames": ({"videos": [[]], "messages": [VIDEO, ANSWER]}, ["by a list of its frames", "got []"]),
    "a video's unknown key": (video_part(frames=3), ["'frames' of a video part", "not understood", "ignore"]),
    "a video's key is text": (video_part(fps="two"), ["fps of a video must be a number", "'two'"]),
    "a video's key is negative": (video_part(fps=-1), ["fps of a video must be a number", "-1"]),
    "part's text is null": ({"messages": [{"role": "user", "content": [text(None)]}]}, ["needs a text", "None"]),
    "part's path is a number": ({"messages": [{"role": "user", "content": [image(3)]}]}, ["by its path", "got 3"]),
    "part's path is empty": ({"messages": [{"role": "user", "content": [image("")]}]}, ["by its path", "got ''"]),
    "half a character": ({"messages": [{"role": "user", "content": "\ud83d"}]}, ["surrogate", r"\ud83d", "mend"]),
    "images are a number": ({"images": 0, "messages": [USER, ANSWER]}, ["a path or a list of paths", "got 0"]),
    "an image is two things": (
        {"image": {"path": "a", "url": "b"}, "messages": [with_images(1)]},
        ["by one of", "'b'"],
    ),
    "an image is null": ({"images": [None], "messages": [with_images(1)]}, ["by its path", "None"]),
    "an image is empty": ({"images": [""], "messages": [with_images(1)]}, ["by its path", "''"]),
    "too many images": (
        {"images": ["a", "b"], "messages": [with_images(1), ANSWER]},
        ["2 image(s) for 1 place(s)", "'<image>' or image part"],
    ),
    "too few images": ({"image": "a", "messages": [with_images(2), ANSWER]}, ["image(s) for ", "place(s); give one"]),
    "mark without image": (
        {"conversations": [{"from": "human", "value": "<image>"}]},
        ["image(s) for ", "place(s); give one"],
    ),
    "two marks in a message, one image": (
        {"images": ["a"], "messages": [{"role": "user", "content": "<image>q<image>"}, ANSWER]},
        ["image(s) for ", "place(s); give one"],
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


def turns_of(record):
    """Role and text of each turn; a picture is written as its file's name in brackets."""
    return [
        (
            message["role"],
            "".join(
                part["text"] if part["type"] == "text" else f"[{os.path.basename(part['image'])}]"
                for part in message["content"]
            ),
        )
        for message in record.messages
    ]


ASKED = [("user", "[a.png]q"), ("assistant", "a")]
DIALECTS = {
    "a list of turns as JSON text": (
        {"messages": json.dumps([with_text("<image>q"), ANSWER]), "image": "a.png"},
        ASKED,
    ),
    "images as JSON text": ({"messages": [with_text("<image>q"), ANSWER], "images": '["a.png"]'}, ASKED),
    "conversation": ({"conversation": [with_text("<image>q"), ANSWER], "image": "a.png"}, ASKED),
    "Alpaca": ({"instruction": "q", "input": "", "output": "a", "image": "a.png"}, ASKED),
    "Alpaca with an input": ({"instruction": "q", "input": "x", "output": "a"}, [("user", "q\nx"), ("assistant", "a")]),
    "Alpaca with an input alone": (
        {"instruction": "", "input": "x", "output": "a"},
        [("user", "x"), ("assistant", "a")],
    ),
    "Alpaca with a history": (
        {"instruction": "q", "output": "a", "history": [["<image>p", "b"]], "images": ["a.png"], "system": "s"},
        [("system", "s"), ("user", "[a.png]p"), ("assistant", "b"), ("user", "q"), ("assistant", "a")],
    ),
    "ms-swift": ({"query": "q", "response": "a", "images": ["a.png"]}, ASKED),
    "ms-swift with a mark": (
        {"query": "which<image>q", "response": "a", "images": ["a.png"]},
        [("user", "which[a.png]q"), ASKED[1]],
    ),
    "LLaMA-Factory": ({"prompt": "q", "response": "a", "images": ["a.png"]}, ASKED),
    "TRL, texts": ({"prompt": "q", "completion": "a", "image": "a.png"}, ASKED),
    "TRL, turns": ({"prompt": [with_text("q")], "completion": [ANSWER], "images": ["a.png"]}, ASKED),
    "question and answer": ({"question": "q", "answer": "a", "image": "a.png"}, ASKED),
    "The Cauldron": (
        {
            "texts": [{"user": "q", "assistant": "a", "source": "x"}, {"user": "p", "assistant": "b"}],
            "images": ["a.png"],
        },
        [*ASKED, ("user", "p"), ("assistant", "b")],
    ),
    "Qwen's pictures": (
        {
            "conversations": [
                {"from": "user", "value": "Picture 1: <img>a.png</img>\nq"},
                {"from": "assistant", "value": "a"},
            ]
        },
        [("user", "Picture 1: [a.png]\nq"), ("assistant", "a")],
    ),
    "a system prompt beside the turns": (
        {"messages": [with_text("q"), ANSWER], "system": "s"},
        [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
    "an empty system prompt": (
        {"messages": [with_text("q"), ANSWER], "system": ""},
        [("user", "q"), ("assistant", "a")],
    ),
    "a tool's turn": (
        {"messages": [with_text("q"), {"role": "tool", "content": "t", "name": "zoom", "tool_call_id": "1"}, ANSWER]},
        [("user", "q"), ("tool", "t"), ("assistant", "a")],
    ),
    "metadata": (
        {"messages": [with_text("q"), ANSWER], "source": "x", "split": "train", "idx": 3, "metadata": {"a": 1}},
        [("user", "q"), ("assistant", "a")],
    ),
}


@pytest.mark.parametrize("case", DIALECTS)
def test_dialects(tmp_path, case):
    raw, expected = DIALECTS[case]
    assert turns_of(parse(tmp_path, **raw)) == expected


ONE_PIXEL = base64.b64encode(b"picture").decode()
PICTURES = {
    "path": ({"path": "a.png"}, "a.png"),
    "url": ({"url": "a.png"}, "a.png"),
    "image_url": ({"image_url": {"url": "a.png"}}, "a.png"),
    "image_url as text": ({"image_url": "a.png"}, "a.png"),
    "image_url with a detail": ({"image_url": {"url": "a.png", "detail": "auto"}}, "a.png"),
    "a file's URI": ({"url": "file:///root/a%20b.png"}, "/root/a b.png"),
    "a data URI": ({"image": f"data:image/png;base64,{ONE_PIXEL}"}, b"picture"),
    "a data URI in image_url": ({"image_url": {"url": f"data:image/png;base64,{ONE_PIXEL}"}}, b"picture"),
    "Qwen's data URI": ({"image": f"data:image;base64,{ONE_PIXEL}"}, b"picture"),
    "base64": ({"base64": ONE_PIXEL}, b"picture"),
    "base64 in lines": ({"base64": f"{ONE_PIXEL[:4]}\n{ONE_PIXEL[4:]}"}, b"picture"),
    "bytes": ({"image": {"bytes": b"picture", "path": "a.png"}}, b"picture"),
}


NAMED = [(kind, case) for kind in ("image", "image_url") for case in PICTURES]
NAMED += [(None, case) for case, (said, _) in PICTURES.items() if said.keys() & {"image", "image_url"}]


@pytest.mark.parametrize(("kind", "case"), NAMED)
def test_a_part_may_name_its_picture_in_many_ways(tmp_path, kind, case):
    said, expected = PICTURES[case]
    part = said if kind is None else {"type": kind, **said}
    record = parse(tmp_path, messages=[{"role": "user", "content": [part, text("q")]}, ANSWER])
    assert record.images == [str(tmp_path / expected) if expected == "a.png" else expected]


def test_indices_say_which_picture_a_part_shows(tmp_path):
    content = [text("second, then first"), {"type": "image", "index": 1}, {"type": "image", "index": 0}]
    record = parse(tmp_path, images=["a.png", "b.png"], messages=[{"role": "user", "content": content}, ANSWER])
    assert record.images == [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    stored = [{"type": "text", "text": "q", "index": None}, {"type": "image", "text": None, "index": 0}]
    record = parse(tmp_path, images=["a.png"], messages=[{"role": "user", "content": stored}, ANSWER])
    assert record.images == [str(tmp_path / "a.png")]
    for indices in ([0], [0, 2], [0, None], [0, 0], [-1, 0]):
        content = [{"type": "image", "index": index} for index in indices]
        with pytest.raises(DataError, match="image parts show the indices"):
            parse(tmp_path, images=["a.png", "b.png"], messages=[{"role": "user", "content": content}, ANSWER])


def test_sizes_of_a_part_stay_with_its_picture(tmp_path):
    size = {"min_pixels": 100, "max_pixels": 3136.0}
    content = [
        {"type": "image", "resized_height": 28, "resized_width": 56},
        {"type": "image", "image": "b.png", **size},
    ]
    record = parse(tmp_path, images=["a.png"], messages=[{"role": "user", "content": content}, ANSWER])
    assert record.images == [
        SizedPicture(str(tmp_path / "a.png"), {"resized_height": 28, "resized_width": 56}),
        SizedPicture(str(tmp_path / "b.png"), size),
    ]


@pytest.mark.parametrize(
    "mark", [{"loss": False}, {"loss_scale": 0.0}, {"weight": 0}, {"train": False}, {"train": 0, "loss": False}]
)
def test_a_turn_may_say_that_it_is_not_learnt(tmp_path, mark):
    turns = [{**USER, **mark}, {**ANSWER, **mark}, USER, {**ANSWER, **dict.fromkeys(mark, 1)}]
    record = parse(tmp_path, messages=turns)
    assert [message.get("supervised", True) for message in record.messages[1::2]] == [False, True]
    with pytest.raises(DataError, match="no assistant turn to learn from"):
        parse(tmp_path, messages=turns[:2])


def test_only_the_completion_of_a_prompt_is_learnt(tmp_path):
    record = parse(tmp_path, prompt=[USER, ANSWER, USER], completion=[ANSWER])
    assert [message.get("supervised", True) for message in record.messages[1::2]] == [False, True]


CALL = {"name": "zoom", "arguments": {"factor": 2}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "zoom", "arguments": '{"factor": 2}'}}],
        },
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": json.dumps([CALL])},
    ],
)
def test_calls_of_tools_are_kept(tmp_path, turn):
    record = parse(
        tmp_path, messages=[USER, turn, {"from": "observation", "value": "t"}, ANSWER], tools='[{"name": "zoom"}]'
    )
    assert record.messages[1]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert record.messages[1]["content"] == []
    assert record.messages[2]["role"] == "tool"
    assert record.tools == [{"name": "zoom"}]


def test_reasoning_is_kept(tmp_path):
    record = parse(tmp_path, messages=[USER, {**ANSWER, "reasoning_content": "because"}])
    assert record.messages[1]["reasoning_content"] == "because"


UNKNOWN = {
    "'image_path' of a record": {"image_path": "a.png"},
    "'Images' of a record": {"Images": ["a.png"]},
    "'rejected' of a record": {"rejected": "b"},
    "'loss' of a record": {"loss": False},
    "'images' of a turn": {"messages": [{**USER, "images": ["a.png"]}, ANSWER]},
    "'name' of a turn": {"messages": [{**USER, "name": "Ann"}, ANSWER]},
    "'thinking' of a turn": {"messages": [USER, {**ANSWER, "thinking": "b"}]},
    "'reasoning' of a turn": {"messages": [USER, {**ANSWER, "reasoning": "b"}]},
    "'cache_control' of a text part": {"messages": [with_parts({**text("q"), "cache_control": {}}), ANSWER]},
    "'image' of a text part": {"messages": [with_parts({**text("q"), "image": "a.png"}), ANSWER]},
    "'max_pixel' of an image part": {"messages": [with_parts({**image("a.png"), "max_pixel": 3}), ANSWER]},
    "'text' of an image part": {"messages": [with_parts({**image("a.png"), "text": "q"}), ANSWER]},
    "'extra' of a tool call": {"messages": [USER, {**ANSWER, "tool_calls": [{"function": CALL, "extra": 1}]}]},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_key_that_is_not_understood_is_refused(tmp_path, case):
    with pytest.raises(UnknownKeys, match="not understood") as error:
        parse(tmp_path, **{"messages": [USER, ANSWER], **UNKNOWN[case]})
    assert error.value.keys == [case]


def test_every_unknown_key_is_named(tmp_path):
    with pytest.raises(UnknownKeys) as error:
        parse(tmp_path, score=1, rank=2, messages=[{**USER, "a": 1}, {**ANSWER, "a": 1}])
    assert error.value.keys == ["'score' of a record", "'rank' of a record", "'a' of a turn"]


def test_keys_of_parts_may_be_ignored(tmp_path):
    raw = {"messages": [with_parts({**text("q"), "cache_control": {}}), ANSWER]}
    assert turns_of(RecordParser(ImageRoot(tmp_path), ignore=("cache_control",)).parse(raw, "x")) == [
        ("user", "q"),
        ASKED[1],
    ]


def test_columns_rename_keys_and_ignored_keys_are_left_out(tmp_path):
    parser = RecordParser(ImageRoot(tmp_path), {"images": "photo", "messages": "dialogue", "role": "who"}, ("score",))
    raw = {"photo": ["a.png"], "dialogue": [{"who": "user", "content": "<image>q", "score": 1}, ANSWER], "score": 2}
    assert turns_of(parser.parse(raw, "x")) == ASKED
    with pytest.raises(DataError, match=r"x: `columns` .* gives two keys one name"):
        parser.parse({**raw, "images": ["b.png"]}, "x")


REFUSED = {
    "a mark in an answer": ({"messages": [USER, {**ANSWER, "content": "<image>"}]}, "0 image(s) for 1 place(s)"),
    "a mark in a system prompt": ({"messages": [USER, ANSWER], "system": "<image>"}, "0 image(s) for 1 place(s)"),
    "a video's mark": ({"messages": [with_text("<video>q"), ANSWER]}, "0 video(s) for 1 place(s)"),
    "a mark in Alpaca": ({"instruction": "<image>q", "output": "a"}, "0 image(s) for 1 place(s)"),
    "a mark in The Cauldron": ({"texts": [{"user": "<image>q", "assistant": "a"}]}, "0 image(s) for 1 place(s)"),
    "two marks for one picture": (
        {"query": "<image><image>", "response": "a", "image": "a.png"},
        "1 image(s) for 2 place(s)",
    ),
    "a mark for two pictures": (
        {"query": "<image>", "response": "a", "images": ["a", "b"]},
        "2 image(s) for 1 place(s)",
    ),
    "a picture and no mark": ({"messages": [USER, ANSWER], "image": "a.png"}, "1 image(s) for 0 place(s)"),
    "InternLM's mark": ({"messages": [with_text("<ImageHere>q"), ANSWER]}, "another program"),
    "Phi's mark": ({"messages": [with_text("<|image_1|>q"), ANSWER]}, "another program"),
    "a numbered mark": ({"messages": [with_text("<image_1>q"), ANSWER], "image": "a.png"}, "another program"),
    "a mark in capitals": ({"messages": [with_text("<IMAGE>q"), ANSWER]}, "another program"),
    "two dialects": ({"messages": [USER, ANSWER], "query": "q", "response": "a"}, "has both 'messages' and 'query'"),
    "two system prompts": (
        {"messages": [{**USER, "role": "system"}, USER, ANSWER], "system": "s"},
        "'system' and a system",
    ),
    "an answer that is a list": ({"question": "q", "answer": ["a", "b"]}, "must be texts"),
    "an input that is an object": ({"instruction": "q", "input": {"a": 1}, "output": "a"}, "must be texts"),
    "tools that are no objects": ({"messages": [USER, ANSWER], "tools": ["zoom"]}, "tools must be objects"),
    "a path without end": ({"query": "q", "response": "a", "image": "a" * 10_000}, "10000 letters"),
    "MiniCPM's mark": ({"messages": [with_text("<image>./</image>q"), ANSWER], "image": "a.png"}, "another program"),
    "a mark of XML": ({"messages": [with_text("<image/>q"), ANSWER]}, "another program"),
    "a mark of audio": ({"messages": [with_text("<audio>q"), ANSWER]}, "another program"),
    "turns as JSON with a key twice": ({"messages": '[{"role": "user", "role": "system"}]'}, "stands twice"),
    "an answer that is a number": ({"question": "q", "answer": 3}, "must be texts"),
    "a history of turns": ({"query": "q", "response": "a", "history": [USER]}, "a list of pairs"),
    "turns as broken JSON": ({"messages": '[{"role"'}, "broken JSON"),
    "turns as text": ({"messages": "q"}, "must be a list"),
    "a prompt and turns": ({"prompt": "q", "completion": [ANSWER]}, "two texts or two lists"),
    "half a weight": ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "true or false"),
    "a loss in words": ({"messages": [USER, {**ANSWER, "loss": "no"}]}, "true or false"),
    "loss on a question": ({"messages": [{**USER, "train": True}, ANSWER]}, "only assistant turns carry it"),
    "two losses": ({"messages": [USER, {**ANSWER, "train": True, "loss": False}]}, "keep one"),
    "a call without a name": (
        {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {}}]}]},
        "the name of a function",
    ),
    "a call that is text": ({"messages": [USER, {**ANSWER, "tool_calls": ["zoom"]}]}, "the name of a function"),
    "a call of broken arguments": (
        {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "z", "arguments": "{"}]}]},
        "broken JSON",
    ),
    "a question with a call": ({"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, "only assistant turns may"),
    "reasoning that is a list": ({"messages": [USER, {**ANSWER, "reasoning_content": ["b"]}]}, "must be text"),
    "tools that are an object": ({"messages": [USER, ANSWER], "tools": {"name": "z"}}, "'tools' must be a list"),
    "a picture on the web": ({"messages": [with_images(1), ANSWER], "image": "https://a.org/b.png"}, "is on the web"),
    "a picture of another scheme": ({"messages": [with_images(1), ANSWER], "image": "s3://a/b.png"}, "from 's3'"),
    "a video on the web": ({"messages": [VIDEO, ANSWER], "video": "https://a.org/b.mp4"}, "from 'https'"),
    "broken base64": ({"messages": [with_parts({"type": "image", "base64": "?"}), ANSWER]}, "is not base64"),
    "a data URI without data": ({"messages": [with_images(1), ANSWER], "image": "data:image/png"}, "without a comma"),
    "two sources": (
        {"messages": [with_parts({"type": "image", "path": "a", "url": "b"}), ANSWER]},
        "has 'path' and 'url'",
    ),
    "a source and an index": (
        {"messages": [with_parts({**image("a"), "index": 0}), ANSWER], "images": ["b"]},
        "has 'image' and 'index'",
    ),
    "a low detail": (
        {"messages": [with_parts({"type": "image_url", "image_url": {"url": "a", "detail": "low"}}), ANSWER]},
        "'detail': 'low'",
    ),
    "a size in words": ({"messages": [with_parts({**image("a"), "max_pixels": "all"}), ANSWER]}, "must be a number"),
    "an endless size": (
        {"messages": [with_parts({**image("a"), "max_pixels": float("nan")}), ANSWER]},
        "must be a number",
    ),
    "an index in words": ({"messages": [with_parts({"type": "image", "index": "1"}), ANSWER]}, "whole number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_or_broken_is_refused(tmp_path, case):
    raw, words = REFUSED[case]
    with pytest.raises(DataError) as error:
        parse(tmp_path, **raw)
    assert words in str(error.value), str(error.value)
    assert len(str(error.value)) < 400


def test_a_picture_on_the_web_waits_until_it_is_allowed(tmp_path):
    parser = RecordParser(ImageRoot(tmp_path, given=True, allow_web=True))
    record = parser.parse({"messages": [with_images(1), ANSWER], "image": "https://a.org/b.png"}, "x")
    assert record.images == [WebPicture("https://a.org/b.png")]


def test_a_record_without_an_answer_is_read_where_none_is_needed(tmp_path):
    parser = RecordParser(ImageRoot(tmp_path), answered=False)
    assert turns_of(parser.parse({"messages": [USER]}, "x")) == [("user", "q")]


def test_every_example_of_the_page_is_read(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "data.md"
    examples = re.findall(r"`(\{.*?\})`[ ,;|]", page.read_text(encoding="utf-8").partition("Beside the turns")[0])
    assert len(examples) == 9
    for example in examples:
        record = parse(tmp_path, **json.loads(example))
        said = "".join(text for _, text in turns_of(record))
        assert "What is it?" in said
        assert said.endswith("A cat.")
