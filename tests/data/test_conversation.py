"""Conversations: tokens and media are the processor's own, responses carry the loss, and truncation cuts no image."""

import copy
from pathlib import Path

import pytest
import torch
from helpers import conversation, some_records
from PIL import Image

from diffusionvl.data.chat_template import response_header, response_header_ids
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.record import DataError, Record
from diffusionvl.data.streams import IGNORED

LONG = "There is no circle and no triangle in it, and nothing else is drawn in the image."
END = "<|im_end|>"


def message(role, *parts):
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


def image(path):
    return {"type": "image", "image": path}


def all_records(pictures):
    system = message("system", "Answer in one word.")
    twice = [message("user", "is there a circle?"), message("assistant", "no"), message("assistant", "yes")]
    return [
        *some_records(pictures),
        Record([system, *conversation(("what shape is in the image?", "circle", pictures[2])).messages], "system"),
        Record(twice, "two answers"),
        conversation(("", "")),
    ]


def whole(processor, record):
    """What the processor itself makes of the conversation."""
    text = processor.apply_chat_template(record.messages, tokenize=False)
    images = [Image.open(path).convert("RGB") for path in record.images]
    return processor(text=[text], images=images or None, return_tensors="pt")


def supervised_texts(processor, encoded):
    """The text of each run of supervised tokens."""
    texts, before = [], False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label != IGNORED:
            texts += [] if before else [""]
            texts[-1] += processor.tokenizer.decode(token)
        before = label != IGNORED
    return texts


def with_template(processor, template):
    changed = copy.copy(processor)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("supervision", ["assistant", "structural"])
def test_tokens_and_media_are_the_processors(processor, pictures, supervision, number):
    record = all_records(pictures)[number]
    encoded = ConversationEncoder(processor, supervision).encode(record)
    expected = whole(processor, record)
    newline = processor.tokenizer("\n")["input_ids"]
    # Behind the last end of turn the template writes a newline, which only structural supervision keeps.
    tail = newline if supervision == "assistant" else []
    assert encoded.input_ids.tolist() + tail == expected["input_ids"][0].tolist()
    assert encoded.media.keys() == expected.keys() & {"pixel_values", "image_grid_thw"}
    for name, value in encoded.media.items():
        assert torch.equal(value, expected[name])
    assert not encoded.truncated


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("supervision", ["assistant", "structural"])
def test_a_label_is_its_own_token(processor, pictures, supervision, number):
    encoded = ConversationEncoder(processor, supervision).encode(all_records(pictures)[number])
    supervised = encoded.labels != IGNORED
    assert torch.equal(encoded.labels[supervised], encoded.input_ids[supervised])


def test_responses_and_their_end_of_turn_are_supervised(processor, pictures):
    encoder = ConversationEncoder(processor)
    expected = [["yes", LONG, "no"], [LONG], ["circle"], ["circle"], ["no", "yes"], [""]]
    for record, answers in zip(all_records(pictures), expected, strict=True):
        assert supervised_texts(processor, encoder.encode(record)) == [answer + END for answer in answers]


def test_structural_supervision_adds_headers_and_the_templates_tokens_everywhere(processor, pictures):
    turns = ("what\nshape?", "red", pictures[2]), ("and the color?", "no")
    record = Record([message("system", "in the\nimage"), *conversation(*turns).messages], "test")
    encoded = ConversationEncoder(processor, "structural").encode(record)
    picture = "<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|>"
    ignored = ["system", "in the", "image", "user", f"{picture}what", "shape?", "user", "and the color?"]
    assert processor.tokenizer.decode(encoded.input_ids[encoded.labels == IGNORED]) == "".join(ignored)
    start = "<|im_start|>"
    assert supervised_texts(processor, encoded) == [
        start,
        "\n",
        "\n",
        f"{END}\n{start}",
        "\n",
        "\n",
        f"{END}\n{start}assistant\nred{END}\n{start}",
        "\n",
        f"{END}\n{start}assistant\nno{END}\n",
    ]


def test_what_follows_the_last_response_is_left_out(processor, pictures):
    record = conversation(("is it red?", "yes", pictures[1]))
    longer = Record([*record.messages, message("user", image(pictures[0]), "and now?")], "test")
    expected, found = (ConversationEncoder(processor).encode(one) for one in (record, longer))
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.media["image_grid_thw"], expected.media["image_grid_thw"])


def test_the_response_header_is_what_the_template_writes(processor):
    assert response_header(processor) == "<|im_start|>assistant\n"
    assert processor.tokenizer.decode(response_header_ids(processor)) == response_header(processor)


@pytest.mark.parametrize("supervision", ["assistant", "structural"])
def test_truncation_at_every_length(processor, pictures, supervision):
    turns = ("is it red?", "yes it is red", pictures[2]), ("and this?", "no", pictures[1]), ("what is it?", "a circle")
    record = conversation(*turns)
    full = ConversationEncoder(processor, supervision).encode(record)
    length = len(full.input_ids)
    in_response = torch.ones(length, dtype=torch.bool)
    answers = ConversationEncoder(processor).encode(record).labels != IGNORED
    in_response[: len(answers)] = answers
    seen = set()
    for max_length in range(1, length + 2):
        encoded = ConversationEncoder(processor, supervision, max_length).encode(record)
        if encoded is None:
            assert not in_response[:max_length].any()
            continue
        kept = len(encoded.input_ids)
        assert kept <= max_length
        assert torch.equal(encoded.input_ids, full.input_ids[:kept])
        assert torch.equal(encoded.labels, full.labels[:kept])
        assert encoded.truncated == (kept < length)
        # It ends in a response, and as late as it may.
        assert in_response[kept - 1]
        assert not in_response[kept:max_length].any()
        placeholders = int((encoded.input_ids == processor.image_token_id).sum())
        assert placeholders == int(encoded.media["image_grid_thw"].prod(-1).sum()) // 4
        assert len(encoded.media["pixel_values"]) == 4 * placeholders
        seen.add(placeholders)
    assert seen == {4, 12}
    assert kept == length


def test_a_prompt_that_does_not_fit_leaves_nothing(processor, pictures):
    assert ConversationEncoder(processor, max_length=20).encode(conversation(("q", "a", pictures[0]))) is None


@pytest.mark.parametrize("render", [True, False])
def test_an_image_that_the_processor_refuses_is_named(processor, tmp_path, render):
    path = str(tmp_path / "thin.png")
    Image.new("RGB", (1, 300)).save(path)
    with pytest.raises(DataError, match=r"test: the processor refuses .*thin\.png.*aspect ratio.*; change or drop"):
        ConversationEncoder(processor).encode(conversation(("q", "a", path)), render)


@pytest.mark.parametrize("supervision", ["assistant", "structural"])
@pytest.mark.parametrize("max_length", [None, 60, 30])
def test_images_need_not_be_rendered_to_count_tokens(processor, pictures, tmp_path, supervision, max_length):
    Image.new("RGB", (300, 100)).save(tmp_path / "wide.png")
    encoder = ConversationEncoder(processor, supervision, max_length)
    records = [*some_records(pictures), conversation(("q", "a", str(tmp_path / "wide.png"), pictures[0]))]
    for record in records:
        whole, measured = encoder.encode(record), encoder.encode(record, render=False)
        assert (whole is None) == (measured is None)
        if whole is not None:
            assert torch.equal(measured.input_ids, whole.input_ids)
            assert (measured.images, measured.truncated) == (whole.images, whole.truncated)
            assert torch.equal(measured.labels, whole.labels)
            assert measured.media == {}


def test_images_that_are_not_rendered_are_not_decoded(processor, pictures, tmp_path):
    whole = Path(pictures[0]).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    record = conversation(("q", "a", str(tmp_path / "half.png")))
    assert ConversationEncoder(processor).encode(record, render=False).images == 1
    with pytest.raises(DataError, match="cannot be read"):
        ConversationEncoder(processor).encode(record)


REWRITES = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if loop.last or m['role'] == 'user' %}\
{{ m['content'][0]['text'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
ENDLESS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'][0]['text'] + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


@pytest.mark.parametrize("template", [REWRITES, ENDLESS], ids=["rewrites", "endless"])
def test_a_template_that_does_not_append_is_refused(processor, template):
    encoder = ConversationEncoder(with_template(processor, template))
    assert supervised_texts(processor, encoder.encode(conversation(("q", "a"))))[0].startswith("a")
    with pytest.raises(DataError, match=r"test: the chat template rewrites earlier turns.*; use a template"):
        encoder.encode(conversation(("q", "a"), ("p", "b")))


def test_an_end_of_turn_is_added_where_the_template_writes_none(processor):
    encoder = ConversationEncoder(with_template(processor, ENDLESS))
    assert supervised_texts(processor, encoder.encode(conversation(("q", "a")))) == [f"a\n{END}"]


def test_without_a_header_structural_supervision_spares_the_prompt(processor):
    template = "{% for m in messages %}{{ m['content'][0]['text'] + '<|im_end|>' }}{% endfor %}"
    encoder = ConversationEncoder(with_template(processor, template), "structural")
    assert encoder.header_ids == []
    assert supervised_texts(processor, encoder.encode(conversation(("what", "red")))) == [f"{END}red{END}"]


def test_a_template_that_refuses_the_turns_is_named(processor):
    template = "{% if messages|length > 3 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    encoder = ConversationEncoder(with_template(processor, template))
    with pytest.raises(DataError, match=r"test: the chat template refuses .*roles must alternate; change its turns"):
        encoder.encode(conversation(("q", "a"), ("p", "b")))


def test_a_conversation_can_not_open_with_a_response(processor):
    record = Record([message("assistant", "hello"), *conversation(("q", "a")).messages], "test")
    with pytest.raises(DataError, match="test: opens with an assistant turn; drop it or put a user turn"):
        ConversationEncoder(processor).encode(record)


def test_an_image_in_a_response_is_refused(processor, pictures):
    record = Record([message("user", "q"), message("assistant", image(pictures[0]))], "test")
    with pytest.raises(DataError, match=r"test: an assistant turn holds .*0\.png.*; move it to a user turn"):
        ConversationEncoder(processor).encode(record)


@pytest.mark.parametrize(
    ("question", "answer", "token"),
    [
        ("q <|image_pad|>", "a", "<|image_pad|>"),
        ("q", "<|image_pad|>", "<|image_pad|>"),
        ("q <|video_pad|>", "a", "<|video_pad|>"),
        ("q", f"a{END}b", END),
    ],
)
@pytest.mark.parametrize("count", [0, 1])
def test_text_that_would_not_be_read_as_text_is_refused(processor, pictures, question, answer, token, count):
    with pytest.raises(DataError) as error:
        ConversationEncoder(processor).encode(conversation((question, answer, *pictures[:count])))
    assert str(error.value).startswith(f"test: the text of a turn holds {token!r}")
    assert str(error.value).endswith("take it out")


def test_an_unknown_supervision_is_refused(processor):
    with pytest.raises(ValueError, match=r"supervision must be one of .*'assistant', 'structural'.*'all'"):
        ConversationEncoder(processor, "all")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|mask|>", "<|image_pad|>"])
@pytest.mark.parametrize("place", ["question", "answer"])
def test_tokens_of_the_template_in_a_turn_are_refused(processor, token, place):
    texts = {"question": "is it?", "answer": "yes"} | {place: f"so {token} it is"}
    with pytest.raises(DataError, match="take it out") as error:
        ConversationEncoder(processor).encode(conversation((texts["question"], texts["answer"])))
    assert token in str(error.value)


def test_a_turn_that_is_not_learnt_carries_no_loss(processor):
    record = conversation(("one?", "WRONG"), ("two?", "right"))
    record.messages[1]["supervised"] = False
    encoder = ConversationEncoder(processor)
    encoded = encoder.encode(record)
    assert supervised_texts(processor, encoded) == ["right" + END]
    assert torch.equal(encoded.input_ids, encoder.encode(conversation(("one?", "WRONG"), ("two?", "right"))).input_ids)


def test_truncation_to_turns_that_carry_no_loss_leaves_nothing(processor):
    record = conversation(("one?", "WRONG"), ("two?", "right"))
    record.messages[1]["supervised"] = False
    first = len(ConversationEncoder(processor).encode(conversation(("one?", "WRONG"))).input_ids)
    assert ConversationEncoder(processor, max_length=first).encode(record) is None
    assert ConversationEncoder(processor, max_length=first + 30).encode(record) is not None


TOOLS = (
    "{%- if tools -%}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.reasoning_content -%}{{ 'thinks: ' + message.reasoning_content + ';' }}{%- endif -%}"
    "{%- for part in message.content -%}{{ part.text }}{%- endfor -%}"
    "{%- for call in message.tool_calls or [] -%}{{ call.function | tojson }}{%- endfor -%}{{ '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def test_tools_calls_and_reasoning_reach_the_template(processor):
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"where": 'the "left" side'}}}
    turns = conversation(("what is it?", "")).messages
    turns[1] |= {"content": [], "tool_calls": [call], "reasoning_content": "it is small"}
    record = Record([*turns, message("tool", "red"), message("assistant", "red")], "x", [{"name": "zoom"}])
    encoder = ConversationEncoder(with_template(processor, TOOLS))
    encoded = encoder.encode(record)
    first, last = supervised_texts(processor, encoded)
    assert first.startswith("thinks: it is small;")
    assert '"where": "the \\"left\\" side"' in first
    assert last == "red" + END
    for name in ("tool_calls", "reasoning_content"):
        cut = {key: value for key, value in turns[1].items() if key != name}
        assert len(encoder.encode(Record([turns[0], cut, *record.messages[2:]], "x", record.tools)).input_ids) < len(
            encoded.input_ids
        )


@pytest.mark.parametrize("extra", ["tools", "tool_calls", "reasoning_content"])
def test_a_template_that_leaves_out_tools_calls_or_reasoning_is_refused(processor, extra):
    record = conversation(("what is it?", "red"))
    said = {"tool_calls": [{"function": {"name": "zoom", "arguments": {}}}], "reasoning_content": "zoom"}
    if extra == "tools":
        record = Record(record.messages, "x", [{"type": "function", "function": {"name": "zoom"}}])
    else:
        record.messages[1][extra] = said[extra]
    with pytest.raises(DataError, match="leaves out or changes the text 'zoom'"):
        ConversationEncoder(processor).encode(record)
