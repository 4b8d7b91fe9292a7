"""Dialects: many ways to write a conversation become one record."""

import json
import re
from pathlib import Path

import pytest
from raw_records import (
    ANSWER,
    USER,
    contents,
    image,
    parse,
    text,
    turns_of,
    video,
    with_parts,
    with_text,
)

from diffusionvl.data.record import DataError, SizedPicture, Video
from diffusionvl.data.record_parser import RecordParser
from diffusionvl.data.references import ImageRoot

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
def test_all_dialects_give_the_same_record(tmp_path, raw):
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
def test_all_dialects_take_videos(tmp_path, raw):
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
    """As its training code does; in other dialects an image stands where it is written."""
    a = image(str(tmp_path / "a.png"))
    turns = [{"from": "human", "value": "what is <image> this?"}, {"from": "gpt", "value": "a"}]
    assert contents(parse(tmp_path, image="a.png", conversations=turns))[0] == [a, text("what is  this?")]
    user = {"role": "user", "content": "what is <image> this?"}
    found = contents(parse(tmp_path, image="a.png", messages=[user, ANSWER]))[0]
    assert found == [text("what is "), a, text(" this?")]


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
