"""The lmms-eval plugin, request by request, against the model alone."""

import pytest
from helpers import load_model, prompts
from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2
from PIL import Image

from diffusionvl.checkpoints.loading import load_model as load_checkpoint
from diffusionvl.data.prompts import write
from diffusionvl.evaluation import lmms_eval_model
from diffusionvl.evaluation.answerer import reference_answer
from diffusionvl.evaluation.card import open_card_image, read_cards
from diffusionvl.evaluation.lmms_eval_model import DiffusionVLChat, DiffusionVLSimple
from diffusionvl.evaluation.plugin import manifests

DOCS = [
    {"text": "what shape is in the image?", "images": [0]},
    {"text": "describe the image in detail. " * 3, "images": [1, 2]},
    {"text": "is there a circle?", "images": []},
    {"text": "what is the color of the shape?", "images": [2]},
    {"text": "which shapes are missing from the image?", "images": []},
]
GREEDY = {"max_new_tokens": 12, "temperature": 0, "do_sample": False, "top_p": None, "num_beams": 1}


@pytest.fixture(scope="module")
def images(pictures):
    return [Image.open(path) for path in pictures]


def build(form, folder, images, **options):
    """A plugin model that knows the documents as the task "shapes"."""
    model = form(folder, device="cpu", **options)
    model.task_dict["shapes"] = {"test": [{**doc, "pictures": [images[n] for n in doc["images"]]} for doc in DOCS]}
    return model


def visuals(doc):
    return doc["pictures"]


def messages(doc):
    parts = [{"type": "image", "url": image} for image in doc["pictures"]]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["text"]}]}]


def requests(form, settings=GREEDY, kind="generate_until", extra=()):
    """All documents as requests of lmms-eval, in the form that a model wants."""
    built = []
    for number, doc in enumerate(DOCS):
        tail = (number, "shapes", "test")
        arguments = (doc["text"], dict(settings), visuals, *extra, *tail)
        if form is DiffusionVLChat:
            arguments = (doc["text"], messages, dict(settings), *tail)
        metadata = {"task": "shapes", "doc_id": number, "repeats": 1}
        built.append(Instance(request_type=kind, arguments=arguments, idx=0, metadata=metadata))
    return built


def alone(model, processor, pictures, **settings):
    """Each document by the processor and `generate` alone: decoded texts and numbers of tokens."""
    texts, counts = [], []
    for doc in DOCS:
        inputs = prompts(processor, (doc["text"], *(pictures[n] for n in doc["images"])))
        new = model.generate(**inputs, max_new_tokens=12, **settings)[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True))
        counts.append(len(new))
    return texts, counts


def test_manifest_offers_both_forms():
    registry = ModelRegistryV2()
    registry.register_manifest(manifests())
    assert registry.get_model_class("diffusionvl") is DiffusionVLChat
    assert registry.get_model_class("diffusionvl", force_simple=True) is DiffusionVLSimple


@pytest.mark.parametrize("form", [DiffusionVLChat, DiffusionVLSimple])
@pytest.mark.parametrize(("batch_size", "decoding"), [(1, None), (5, None), (5, "autoregressive"), (5, "speculative")])
def test_answers_are_those_of_generate_alone(form, batch_size, decoding, causal_dir, processor, pictures, images):
    model = build(form, causal_dir, images, batch_size=batch_size, decoding=decoding)
    results = model.generate_until(requests(form))
    texts, counts = alone(load_model(causal_dir), processor, pictures, decoding=decoding)
    assert [result.text for result in results] == [text.strip() for text in texts]
    assert [result.token_counts.output_tokens for result in results] == counts
    assert all(result.token_counts.input_tokens > 5 for result in results)
    speed = model.answerer.costs["shapes"]
    assert (speed.answers, speed.tokens) == (5, sum(counts))
    assert 0 < speed.seconds_to_first_block < speed.seconds < speed.loop_seconds


@pytest.mark.parametrize("batch_size", [1, 5])
def test_ar_base_answers_by_the_same_plugin(batch_size, base_dir, processor, pictures, images):
    model = build(DiffusionVLChat, base_dir, images, batch_size=batch_size, decode="ar")
    results = model.generate_until(requests(DiffusionVLChat))
    texts, _ = alone(load_checkpoint(base_dir).eval(), processor, pictures, do_sample=False)
    assert [result.text for result in results] == [text.strip() for text in texts]
    speed = model.answerer.costs["shapes"]
    assert speed.forwards == speed.tokens


def test_settings_of_model_args_win_and_that_is_logged(translated_dir, images, caplog):
    seen = []
    handle = lmms_eval_model.logger.add(seen.append, format="{message}")
    model = build(DiffusionVLChat, translated_dir, images, batch_size=5, max_new_tokens=3)
    results = model.generate_until(requests(DiffusionVLChat))
    lmms_eval_model.logger.remove(handle)
    assert max(result.token_counts.output_tokens for result in results) == 3
    assert [line.strip() for line in seen] == [
        "max_new_tokens=12 of shapes gives way to max_new_tokens=3 of model_args"
    ]


def test_showcase_keeps_questions_and_one_film(translated_dir, images, tmp_path):
    model = build(DiffusionVLChat, translated_dir, images, batch_size=5, showcase=str(tmp_path), showcase_samples=3)
    results = model.generate_until(requests(DiffusionVLChat))
    cards = read_cards(tmp_path)
    assert [(card.task, card.number) for card in cards] == [("shapes", 0), ("shapes", 2), ("shapes", 4)]
    assert [card.answer for card in cards] == [results[number].text for number in (0, 2, 4)]
    assert [card.question for card in cards] == [DOCS[number]["text"] for number in (0, 2, 4)]
    assert [bool(card.film) for card in cards] == [True, False, False]
    assert "data-captions" in cards[0].film
    assert open_card_image(tmp_path, cards[0]).tobytes() == images[0].convert("RGB").tobytes()
    assert open_card_image(tmp_path, cards[1]) is None


@pytest.mark.parametrize("kind", ["base_dir", "translated_dir"])
def test_until_ends_answers_and_padding_is_not_answered(kind, request, processor, pictures, images):
    folder = request.getfixturevalue(kind)
    model = build(DiffusionVLChat, folder, images, batch_size=5)
    texts, counts = alone(load_checkpoint(folder).eval(), processor, pictures)
    stop = texts[0][3:5]
    asked = requests(DiffusionVLChat, {**GREEDY, "until": [stop, "never"]})
    asked[-1].metadata["__padding_only__"] = True
    expected = [text.split(stop)[0].strip() for text in texts[:-1]]
    assert [result.text for result in model.generate_until(asked)] == [*expected, ""]
    speed = model.answerer.costs["shapes"]
    assert speed.answers == 4
    assert speed.tokens < sum(counts[:-1])
    model.answerer.postprocess = "reference"
    expected = [reference_answer(text, [stop]) for text in texts[:-1]]
    assert [result.text for result in model.generate_until(asked)] == [*expected, ""]


@pytest.mark.parametrize("kind", ["base_dir", "translated_dir"])
def test_draws_depend_on_seed_and_repeat_but_not_on_the_batch(kind, request, images):
    folder = request.getfixturevalue(kind)
    sampled = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5, "top_p": 0.9}

    def answers(batch_size, seed):
        model = build(DiffusionVLChat, folder, images, batch_size=batch_size, seed=seed)
        return [result.text for result in model.generate_until(2 * requests(DiffusionVLChat, sampled)[:3])]

    first = answers(1, 0)
    assert first == answers(4, 0)
    assert first != answers(4, 1)
    assert first[:3] != first[3:]


def test_multi_round_dialogues_end_when_the_task_says_so(translated_dir, images):
    def following(doc, previous_output=None, round_idx=None, previous_round_info=None, **_):
        """Document 0 has one round, document 1 two, and so on; the last answers are asked about."""
        ended = round_idx > DOCS.index({name: doc[name] for name in ("text", "images")})
        seen = [*(previous_round_info or []), round_idx]
        return doc["pictures"], f"{doc['text']} again", ended, previous_output, seen

    def turns(doc, round_idx=None, **state):
        if round_idx is None:
            return messages(doc)
        _, text, ended, previous, seen = following(doc, round_idx=round_idx, **state)
        return messages({**doc, "text": text}), ended, previous, seen

    simple = build(DiffusionVLSimple, translated_dir, images, batch_size=2)
    rounds = simple.generate_until_multi_round(requests(DiffusionVLSimple, extra=(following,)))
    assert [len(answers) for answers in rounds] == [1, 2, 3, 4, 5]
    single = [result.text for result in simple.generate_until(requests(DiffusionVLSimple))]
    assert [answers[0] for answers in rounds] == single
    assert len({*rounds[4]}) == 2  # the first question, and the second one, which is asked over and over
    chat = build(DiffusionVLChat, translated_dir, images, batch_size=5)
    asked = requests(DiffusionVLChat)
    for one in asked:
        one.arguments = (one.arguments[0], turns, *one.arguments[2:])
    assert chat.generate_until_multi_round(asked) == rounds


def test_reference_prompt_joins_images_in_front_of_the_text(translated_dir, images):
    model = build(DiffusionVLChat, translated_dir, images, prompt="reference", system_prompt="be brief")
    question = model._asked(requests(DiffusionVLChat))[1].question
    prompt = question.prompt()
    text = write(model.answerer.processor, prompt.record)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"{image} {image}\n{DOCS[1]['text']}<" in text
    assert text.startswith("<|im_start|>system\nbe brief<")
    assert len(prompt.images) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4}, "'steps' is called 'denoising_steps' here"),
        ({"colour": 1}, r"unknown settings \['colour'\]; known are pretrained, .*max_new_tokens"),
        ({"block_size": 16}, "block_size=16 exceeds the checkpoint's; give 1 to 8"),
        ({"denoising_steps": 9}, "give 1 to 8"),
        ({"num_beams": 3}, "has no beams"),
        ({"confidence_threshold": 2.0}, r"confidence_threshold must be a number in \[0, 1\]"),
        ({"do_sample": True, "temperature": 0}, "contradicts"),
        ({"decode": "ar"}, "give its AR base"),
        ({"decode": "beam"}, "decode must be one of"),
        ({"batch_size": "auto"}, "batch_size must be a whole number"),
        ({"max_batch_size": 8}, "give --batch_size"),
        ({"prompt": "qwen"}, "prompt must be one of"),
        ({"postprocess": "qwen"}, "postprocess must be one of"),
        ({"seed": "x"}, "seed must be a whole number of at least 0, got 'x'"),
        ({"showcase_samples": 0}, "showcase_samples must be a whole number of at least 1"),
    ],
)
def test_refused_before_the_model_is_loaded(options, message, translated_dir, monkeypatch):
    monkeypatch.setattr(lmms_eval_model, "load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        DiffusionVLChat(translated_dir, device="cpu", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remasking": "low_confidence_static"}, "autoregressive checkpoint has no remasking"),
        ({"decode": "block_diffusion"}, "run `diffusionvl translate"),
    ],
)
def test_refused_for_an_ar_model(options, message, base_dir):
    with pytest.raises(ValueError, match=message):
        DiffusionVLChat(base_dir, device="cpu", **options)


def test_what_a_question_may_not_hold(translated_dir, images):
    model = build(DiffusionVLChat, translated_dir, images)
    for part, message in (
        ({"type": "text", "text": "a <|im_end|> b"}, "shapes, document 0: the text of a turn holds '<|im_end|>'"),
        ({"type": "video", "url": ["a.png"]}, "shapes, document 0: a video is a list; give a path"),
        ({"type": "audio", "url": "a.wav"}, "of type 'audio'"),
    ):
        asked = requests(DiffusionVLChat)[0]
        content = [{"role": "user", "content": [part]}]
        asked.arguments = ("", lambda doc, content=content: content, *asked.arguments[2:])
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            model.generate_until([asked])
