"""Growing text: whatever the pieces, it adds up to the text of all tokens, and nothing that was sent is wrong."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diffusionvl.serving.text import GrowingText, beginning

TEXT = "naïve 東京 🙂🙃 – e\u0301 is  it? yes.\n\n\nUser: no"


@pytest.fixture(scope="module")
def tokenizers(processor):
    """One of bytes, and one of pieces with a space in front and bytes for what it does not know, as Llama's."""
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "▁is": 257, "▁it": 258, "yes": 259, "?": 260}
    sentence_piece = Tokenizer(models.BPE(pieces, [], byte_fallback=True, ignore_merges=True))
    sentence_piece.pre_tokenizer = pre_tokenizers.Metaspace()
    sentence_piece.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return [processor.tokenizer, PreTrainedTokenizerFast(tokenizer_object=sentence_piece)]


def pieces_of(tokens, rng):
    while tokens:
        size = rng.choice([1, 1, 2, 5])
        yield tokens[:size], len(tokens) <= size
        tokens = tokens[size:]


@pytest.mark.parametrize("which", [0, 1])
def test_pieces_add_up_to_the_whole(tokenizers, which):
    tokenizer = tokenizers[which]
    written = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    rng = random.Random(0)
    for _ in range(100):
        noise = [rng.randrange(257) for _ in range(rng.choice([0, 0, 3]))]  # bytes that may be no character
        tokens = [*noise, *written[rng.randrange(len(written)) :]]
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        growing, text = GrowingText(tokenizer, []), ""
        for piece, ended in pieces_of(tokens, rng):
            text += growing.add(piece, ended)
            assert whole.startswith(text)
        assert text == whole


@pytest.mark.parametrize(
    "stops", [["\n\nUser:"], ["\n\n", "\n\nUser:"], ["🙃"], ["is  it", "it? y"], ["none such"], ["yes.\n\n\nX"]]
)
def test_nothing_of_a_stop_text_is_sent(processor, stops):
    tokens = processor.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    whole = processor.tokenizer.decode(tokens)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    expected = whole[: min(ends, default=len(whole))]
    for seed in range(30):
        growing, text = GrowingText(processor.tokenizer, stops), ""
        for piece, ended in pieces_of(tokens, random.Random(seed)):
            text += growing.add(piece, ended)
            assert expected.startswith(text)
        assert text == expected


def test_the_beginning_of_a_stop_text_is_found_at_the_end():
    assert beginning("a\n", "\n\nUser") == 1
    assert beginning("a\n\nUse", "\n\nUser") == 5
    assert beginning("\n\nUser", "\n\nUser") == 0  # it is whole, which is not for this function to find
    assert beginning("aab", "aabaac") == 3
    assert beginning("", "x") == 0
