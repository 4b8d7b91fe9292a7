import pytest
import torch
from helpers import QUESTION, conversation
from PIL import Image
from tiny_families import FAMILIES

from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.prompts import encode, question
from diffusionvl.data.record import DataError, Record, SizedPicture

IMAGES = [name for name, family in FAMILIES.items() if family.images]


def message(role, *texts):
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize("name", IMAGES)
def test_a_batch_holds_what_each_prompt_holds_alone(name, pictures):
    """Pictures and texts alone in one batch, several pictures in a prompt: tokens are padded on the left."""
    _, processor = FAMILIES[name].build()
    asked = [
        question(QUESTION, pictures[:1]),
        question("what is it?"),
        question("first <image> then <image>: the same?", pictures[1:3]),
    ]
    batch = encode(processor, asked)
    pixels = 0
    for row, one in enumerate(asked):
        alone = encode(processor, [one])
        width = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, -width:], alone["input_ids"][0])
        assert batch["attention_mask"][row].sum() == width
        assert bool(batch["attention_mask"][row, -width:].all())
        pixels += len(alone.get("pixel_values", ()))
    assert len(batch["pixel_values"]) == pixels


def test_a_prompt_begins_as_training_has_it(processor, pictures):
    trained = ConversationEncoder(processor).encode(conversation((QUESTION, "red", *pictures[:2])))
    asked = encode(processor, [question(QUESTION, pictures[:2])])
    width = asked["input_ids"].shape[1]
    assert torch.equal(trained.input_ids[:width], asked["input_ids"][0])
    assert torch.equal(trained.media["pixel_values"], asked["pixel_values"])


def test_marks_say_where_pictures_stand(processor, pictures):
    pad = "<|vision_start|><|image_pad|><|vision_end|>"
    for text, images, written in [
        ("what is it?", pictures[:2], f"{pad}{pad}what is it?"),
        ("what is <image>?", pictures[:1], f"what is {pad}?"),
        ("first <image> then <image>", pictures[:2], f"first {pad} then {pad}"),
    ]:
        asked = question(text, images)
        assert asked.images == list(images)
        assert written in processor.apply_chat_template(asked.messages, tokenize=False)
    for text, images in [("<image>", []), ("<image>", pictures[:2]), ("<image> <image>", pictures[:1])]:
        with pytest.raises(DataError, match=r"the prompt: \d image\(s\) for \d place\(s\)"):
            question(text, images)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>"])
def test_control_tokens_are_no_text_at_any_door(processor, token):
    with pytest.raises(DataError, match="would read as a control token"):
        encode(processor, [question(f"what does {token} mean?")])
    for record in [conversation((f"a {token} b", "yes")), conversation(("really?", f"yes {token}"))]:
        with pytest.raises(DataError, match="would read as a control token"):
            ConversationEncoder(processor).encode(record)
    halves = Record([message("user", token[:5], token[5:])], "halves")
    with pytest.raises(DataError, match="halves: the text of a turn holds"):
        encode(processor, [halves])


TEXT = (
    "{%- set text = message['content'] if message['content'] is string else message['content'] "
    "| selectattr('type', 'equalto', 'text') | map(attribute='text') | JOIN -%}"
)
TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + text + '<|im_end|>\\n' }}"
END = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"


def template(join="join", condition="true"):
    turn = TEXT.replace("JOIN", join) + "{%- if " + condition + " -%}" + TURN + "{%- endif -%}"
    return "{%- for message in messages -%}" + turn + "{%- endfor -%}" + END


@pytest.mark.parametrize(
    ("written", "lost"),
    [
        (template(condition="message['role'] != 'system'"), "one word"),
        (template(condition="message['role'] != 'system' or loop.first"), "two words"),
        (template(join="list | last"), "FIRST part"),
        (template(join="list | first"), "second part"),
        (template(join="join | upper"), "one word"),
        (template(join="join | truncate(5)"), "FIRST part"),
    ],
)
def test_a_template_that_loses_a_text_is_refused(processor, monkeypatch, written, lost):
    monkeypatch.setattr(processor, "chat_template", written)
    record = Record(
        [
            message("system", "one word"),
            message("user", "FIRST part, ", "second part"),
            message("assistant", "ok"),
            message("system", "two words"),
            message("user", "and?"),
            message("assistant", "yes"),
        ],
        "test",
    )
    for call in (lambda: encode(processor, [record]), lambda: ConversationEncoder(processor).encode(record)):
        with pytest.raises(DataError, match=rf"test: the chat template leaves out or changes the text '{lost}"):
            call()


def test_a_template_without_places_for_pictures_is_refused(processor, monkeypatch, pictures):
    monkeypatch.setattr(processor, "chat_template", template())
    with pytest.raises(DataError, match=r"writes 0 places for 1 image"):
        encode(processor, [question("what is it?", pictures[:1])])
    record = conversation(("what is it?", "red", pictures[0]))
    for render in (True, False):
        with pytest.raises(DataError, match=r"writes 0 places for 1 image"):
            ConversationEncoder(processor).encode(record, render)


def test_pictures_may_be_paths_bytes_or_pictures(processor, pictures):
    with open(pictures[0], "rb") as file:
        given = [pictures[0], file.read(), Image.open(pictures[0])]
    first, *others = [encode(processor, [question("what is it?", [one])]) for one in given]
    assert all(torch.equal(first["pixel_values"], other["pixel_values"]) for other in others)


def test_sizes_of_a_picture_are_followed_as_read_and_as_measured(processor, tmp_path):
    Image.new("RGB", (128, 64), "red").save(tmp_path / "a.png")
    tokens = {}
    for name, settings in {
        "own": {},
        "least": {"max_pixels": 16 * 16},
        "resized": {"resized_height": 32, "resized_width": 32},
    }.items():
        shown = SizedPicture(str(tmp_path / "a.png"), settings) if settings else str(tmp_path / "a.png")
        record = conversation(("which?", "red", shown), ("and?", "no", str(tmp_path / "a.png")))
        encoder = ConversationEncoder(processor)
        tokens[name] = len(encoder.encode(record).input_ids)
        assert torch.equal(encoder.encode(record).input_ids, encoder.encode(record, render=False).input_ids)
    assert len({*tokens.values()}) == 3


def test_sizes_of_a_picture_are_refused_where_the_family_cannot_follow(pictures):
    _, processor = FAMILIES["LLaVA"].build()
    record = conversation(("which?", "red", SizedPicture(pictures[0], {"max_pixels": 100})))
    for render in (True, False):
        with pytest.raises(DataError, match="Qwen-VL families alone"):
            ConversationEncoder(processor).encode(record, render)
