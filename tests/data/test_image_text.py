"""Tokens of texts with images, measured from the images' sizes: the number that the processor itself writes."""

import pytest
from PIL import Image
from tiny_families import build_tokenizer
from transformers import Idefics2Processor
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from diffusionvl.data.image_text import ImageText

TEXTS = [
    "<image>",
    "<image><image>",
    "<image>what<image> is it?",
    "a <image>\n<image><image>red",
    "what? <image> <image>",
]


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "split"])
def idefics2(request):
    """It merges the marks around images that are neighbours, and sets a space before a word that follows one."""
    tokenizer = build_tokenizer("")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fake_token_around_image>", "<sep>"]})
    tokenizer.image_boundary_token = "<fake_token_around_image>"
    size = {"shortest_edge": 32, "longest_edge": 64}
    images = Idefics2ImageProcessorPil(size=size, do_image_splitting=request.param)
    return Idefics2Processor(images, tokenizer, image_seq_len=3)


@pytest.mark.parametrize("text", TEXTS)
def test_neighbours_of_an_image_count_as_the_processor_writes_them(idefics2, text):
    sizes = [(48, 40)] * text.count("<image>")
    pictures = [Image.new("RGB", (width, height)) for height, width in sizes]
    expected = idefics2(text=[text], images=[pictures], add_special_tokens=False)["input_ids"][0]
    measured = ImageText(idefics2, "<image>", "<sep>").tokenize(text, sizes)
    assert measured.tolist() == list(expected)
