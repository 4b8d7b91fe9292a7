"""Where generated answers end, and when their first tokens come out."""

from types import SimpleNamespace

import pytest
import torch

from diffusionvl.evaluation.decoding import FirstTokens, answer_lengths

END, PAD = 1, 0


@pytest.mark.parametrize("eos", [END, [END, 9]])
def test_answer_lengths(eos):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos, pad_token_id=PAD))
    new = torch.tensor([[5, 6, END, PAD], [END, PAD, PAD, PAD], [5, 6, 7, 8], [5, 6, PAD, PAD], [5, 6, 7, END]])
    assert answer_lengths(new, model).tolist() == [3, 1, 4, 2, 4]
    model.generation_config = SimpleNamespace(eos_token_id=None, pad_token_id=None)
    assert answer_lengths(new, model).tolist() == [4] * 5


def test_padding_that_is_the_end_of_sequence():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=END, pad_token_id=END))
    assert answer_lengths(torch.tensor([[5, END, END], [5, 6, END], [5, 6, 7]]), model).tolist() == [2, 3, 3]


def test_first_tokens_are_those_after_the_prompt():
    first = FirstTokens()
    first.put(torch.tensor([[1, 2]]))
    assert first.seconds is None
    first.put(torch.tensor([3]))
    seconds = first.seconds
    assert seconds > 0
    first.put(torch.tensor([4]))
    first.end()
    assert first.seconds == seconds
