"""Where an answer ends: an end of sequence, a stop string, the longest length."""

import pytest
from helpers import QUESTION, lively, prompts

from diffusionvl import DiffusionVLGenerationConfig
from diffusionvl.modeling.request import end_of_answer


class Letters:
    """A tokenizer of one letter a token; 99 is special."""

    def decode(self, tokens, skip_special_tokens):
        letters = (
            (chr(97 + token) if token != 99 else "<end>") for token in tokens if token != 99 or not skip_special_tokens
        )
        return "".join(letters)


def ids(text):
    return [ord(letter) - 97 for letter in text]


@pytest.mark.parametrize(
    ("before", "block", "settings", "expected", "reason"),
    [
        ("", "abcd", {}, "abcd", None),
        ("", "abcd", {"max_new_tokens": 4}, "abcd", "length"),
        ("abcd", "efgh", {"max_new_tokens": 6}, "abcdef", "length"),
        ("abcd", "efgh", {"eos_token_id": ids("g")}, "abcdefg", "eos"),
        ("abcd", "eghg", {"eos_token_id": ids("gh")}, "abcdeg", "eos"),
        ("abcd", "efgh", {"eos_token_id": ids("g"), "max_new_tokens": 6}, "abcdef", "length"),
        ("abcd", "efgh", {"eos_token_id": ids("f"), "max_new_tokens": 6}, "abcdef", "eos"),
        ("abcd", "efgh", {"stop_strings": "de"}, "abcde", "stop_string"),  # across blocks
        ("abcd", "efgh", {"stop_strings": ["gh", "f"]}, "abcdef", "stop_string"),
        ("abcd", "efgh", {"stop_strings": "fgh", "eos_token_id": ids("g")}, "abcdefg", "eos"),
        ("abcd", "efgh", {"stop_strings": "ef", "eos_token_id": ids("g")}, "abcdef", "stop_string"),
        ("abcd", "efgh", {"stop_strings": "gh", "max_new_tokens": 7}, "abcdefg", "length"),
        ("abcd", "efgh", {"stop_strings": "x"}, "abcdefgh", None),
    ],
)
def test_an_answer_ends_with_the_first_token_that_ends_it(before, block, settings, expected, reason):
    config = DiffusionVLGenerationConfig(**settings)
    found = end_of_answer(ids(before), ids(block), config, Letters())
    assert found == (ids(expected), reason)


@pytest.mark.parametrize(
    ("stop", "length"), [("ab", 3), ("<end>", 2), ("a<end>", 2), ("<end>b", 3), ("a<end>b", 3), ("<end>a", None)]
)
def test_a_stop_string_may_hold_special_tokens_or_be_parted_by_them(stop, length):
    answer, config = [*ids("a"), 99, *ids("bc")], DiffusionVLGenerationConfig(stop_strings=stop)
    expected = (answer, None) if length is None else (answer[:length], "stop_string")
    assert end_of_answer(answer[:1], answer[1:], config, Letters()) == expected


def test_generate_stops_at_a_text(translated_dir, processor, pictures):
    model, inputs = lively(translated_dir), prompts(processor, (QUESTION, pictures[0]), ("hi",))
    settings = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0, "tokenizer": processor.tokenizer}
    free = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :].tolist()
    text = processor.tokenizer.decode(free[0][5:7])  # the first block has four tokens
    output = model.generate(**inputs, **settings, stop_strings=["no such text", text], return_dict_in_generate=True)
    for row, answer in zip(output.sequences[:, inputs["input_ids"].shape[1] :].tolist(), free, strict=True):
        ends = (end for end in range(1, 25) if text in processor.tokenizer.decode(answer[:end]))
        end = next(ends, 24)
        assert row == answer[:end] + [0] * (len(row) - end)
    assert output.forwards[0] < output.forwards[1]
    with pytest.raises(ValueError, match="stop_strings need a tokenizer"):
        model.generate(**inputs, stop_strings=text)
