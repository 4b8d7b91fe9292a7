"""What is not understood gives one error that names the place, the value and the remedy."""

import pytest
from raw_records import ANSWER, USER, VIDEO, image, parse, text, video_part, with_images, with_parts, with_text

from diffusionvl.data.record import DataError
from diffusionvl.data.record_parser import RecordParser
from diffusionvl.data.references import ImageRoot

CALL = {"name": "zoom", "arguments": {"factor": 2}}


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": []}, {"image": ""}, {"image": None}])
@pytest.mark.parametrize("content", ["an <image> tag", [{"type": "text", "text": "<image>"}], [{"type": "image"}]])
def test_a_place_without_its_image_is_refused(tmp_path, images, content):
    with pytest.raises(DataError, match=r"0 image\(s\) for 1 place\(s\)"):
        parse(tmp_path, **images, messages=[{**USER, "content": content}, ANSWER])
    turns = [{"from": "human", "value": content}, {"from": "gpt", "value": "a"}]
    with pytest.raises(DataError, match=r"0 image\(s\) for 1 place\(s\)"):
        parse(tmp_path, **images, conversations=turns)


@pytest.mark.parametrize("raw", [None, 3, "text", [], [USER, ANSWER]])
def test_a_record_must_be_an_object(tmp_path, raw):
    with pytest.raises(DataError, match=r"data\.jsonl:7: a record must be an object") as error:
        RecordParser(ImageRoot(tmp_path)).parse(raw, "data.jsonl:7")
    assert repr(raw)[:3] in str(error.value)


BAD = {
    "no dialect": ({"text": "q"}, ["needs 'messages' or 'conversations'", "{'id': 'x', 'text': 'q'}"]),
    "turns are an object": ({"messages": {"role": "user"}}, ["'messages' must be a list", "{'role': 'user'}"]),
    "turns are null": ({"messages": None}, ["needs 'messages' or 'conversations'"]),
    "no turns": ({"messages": []}, ["no assistant turn", "add one"]),
    "no turns, LLaVA": ({"conversations": []}, ["no assistant turn", "add one"]),
    "no assistant": ({"messages": [USER]}, ["no assistant turn", "add one"]),
    "two dialects of turns": (
        {"messages": [USER], "conversations": [USER]},
        ["both 'messages' and 'conversations'", "keep one"],
    ),
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
    with pytest.raises(DataError, match="not understood") as error:
        parse(tmp_path, **{"messages": [USER, ANSWER], **UNKNOWN[case]})
    assert error.value.keys == [case]


def test_every_unknown_key_is_named(tmp_path):
    with pytest.raises(DataError) as error:
        parse(tmp_path, score=1, rank=2, messages=[{**USER, "a": 1}, {**ANSWER, "a": 1}])
    assert error.value.keys == ["'score' of a record", "'rank' of a record", "'a' of a turn"]


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
