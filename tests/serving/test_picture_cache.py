"""Pictures that come again are not prepared again, and answers stay what they are."""

import base64

import numpy as np
import pytest
import torch
from helpers import QUESTION, build_picture, prompts
from PIL import Image, PngImagePlugin
from serving_helpers import serving, shown

from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.serving.picture_cache import CONTENT, Content, PictureCache
from diffusionvl.serving.prompts import encode_chat
from diffusionvl.serving.protocol import ChatBody
from diffusionvl.serving.settings import ServingSettings


@pytest.fixture
def counted(translated_dir, monkeypatch):
    """A processor that remembers, its cache, and the number of pictures of each call of the stock image processor."""
    processor, seen = load_processor(translated_dir), []
    stock = type(processor.image_processor)
    own = stock.__call__

    def call(self, images, *args, **kwargs):
        seen.append(sum(map(len, images)))
        return own(self, images, *args, **kwargs)

    monkeypatch.setattr(stock, "__call__", call)
    cache = PictureCache(10**7)
    cache.attach(processor.image_processor)
    return processor, cache, seen


def encoded(processor, cache, *contents):
    messages = [{"role": "user", "content": content} for content in contents]
    return encode_chat(processor, ChatBody(messages=messages).messages, ServingSettings(), cache)


def assert_alike(found, processor, *paths):
    """Whether the inputs of a question about pictures are what they are without a cache."""
    expected = dict(prompts(processor, (QUESTION, *paths)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_known_picture_is_neither_decoded_nor_prepared(counted, processor, pictures, monkeypatch):
    own, cache, seen = counted
    for count, expected_calls in ((1, [1]), (1, []), (2, [1]), (3, [1]), (3, [])):
        assert_alike(encoded(own, cache, shown(QUESTION, *pictures[:count])), processor, *pictures[:count])
        assert seen == expected_calls
        seen.clear()
    monkeypatch.setattr("diffusionvl.serving.pictures.open_image", None)
    encoded(own, cache, shown("another question", pictures[2], pictures[0]))


def test_without_room_nothing_is_kept(counted, processor, pictures):
    own, _, seen = counted
    cache = PictureCache(0)
    cache.attach(own.image_processor)
    for _ in range(2):
        assert_alike(encoded(own, cache, shown(QUESTION, pictures[0])), processor, pictures[0])
    assert seen == [1, 1]


def test_where_pictures_are_prepared_together_only_one_alone_is_kept(counted, pictures, monkeypatch):
    own, cache, seen = counted
    monkeypatch.setattr("diffusionvl.serving.picture_cache.IMAGE_GRID", "no such input")
    for _ in range(2):
        encoded(own, cache, shown(QUESTION, *pictures[:2]))
    assert seen == [2, 2]
    for _ in range(2):
        encoded(own, cache, shown(QUESTION, pictures[0]))
    assert seen == [2, 2, 1]


def test_the_least_recently_used_goes_first():
    features = {"pixel_values": np.zeros(10, dtype=np.uint8)}
    cache = PictureCache(25)
    for key in (b"a", b"b", b"a", b"c"):
        if cache.find(key) is None:
            cache.keep(Content(key, (1, 1), features))
    assert [cache.find(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]


def test_a_picture_cannot_pass_for_another_one(counted, processor, tmp_path):
    """A PNG file may hold any text under any name."""
    own, cache, seen = counted
    note = PngImagePlugin.PngInfo()
    note.add_text(CONTENT, "known")
    Image.fromarray(build_picture((64, 64))).save(tmp_path / "a.png", pnginfo=note)
    uri = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": uri}}
    for _ in range(2):
        found = encoded(own, cache, [picture, {"type": "text", "text": QUESTION}])
        assert_alike(found, processor, str(tmp_path / "a.png"))
    assert seen == [1]


def test_a_server_gives_the_same_answers(model, processor, pictures):
    answers = []
    for room in (0, 10**7):
        with serving(model, processor, picture_cache_bytes=room, workers=2) as server:
            asked = [pictures[:1], pictures[:1], pictures[:2], pictures, pictures[1:], pictures[:1]]
            responses = [server.chat(shown(QUESTION, *paths), max_tokens=9, return_token_ids=True) for paths in asked]
            answers.append([response.json()["choices"][0]["token_ids"] for response in responses])
    assert answers[0] == answers[1]
