"""Streamers: every token once and in order, drafts in between, and transformers' own streamers print the answer."""

import pytest
import torch
from helpers import QUESTION, load_model, prompts
from transformers import TextDiffusionStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer


class Recorder(BaseStreamer):
    """Keeps what it receives."""

    def __init__(self):
        self.puts, self.drafts, self.ended = [], [], False

    def put(self, value):
        self.puts.append(value)
        self.drafts.append([])

    def put_draft(self, value):
        self.drafts[-1].append(value)

    def end(self):
        self.ended = True


def streamed(model, inputs, streamer=None, **settings):
    """The streamer of a call that samples, so that tokens vary, and the sequences."""
    streamer = streamer or Recorder()
    generator = [torch.Generator().manual_seed(row) for row in range(len(inputs["input_ids"]))]
    settings = {"max_new_tokens": 14, "temperature": 1.5, "denoising_steps": 3, "eos_token_id": None, **settings}
    return streamer, model.generate(**inputs, streamer=streamer, generator=generator, **settings)


@pytest.fixture
def batch(processor, pictures):
    return prompts(processor, (QUESTION, pictures[0]), ("is there a circle?",), ("hi", pictures[1], pictures[2]))


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_puts_join_to_the_answer_of_a_batch(translated_dir, batch, block_origin, ended):
    model = load_model(translated_dir, block_size=4, block_origin=block_origin)
    _, free = streamed(model, batch)
    ends = free[:, batch["input_ids"].shape[1] + 6].tolist() if ended else None
    streamer, sequences = streamed(model, batch, eos_token_id=ends)
    assert (sequences.shape[1] < free.shape[1]) == ended
    assert torch.equal(streamer.puts[0], batch["input_ids"])
    assert torch.equal(torch.cat(streamer.puts, dim=1), sequences)
    assert all(put.shape[1] for put in streamer.puts)
    assert len(streamer.puts) > 2
    assert streamer.ended


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_drafts_show_the_block_that_is_put_next(translated_dir, processor, pictures, block_origin):
    model = load_model(translated_dir, block_size=4, block_origin=block_origin)
    streamer, _ = streamed(model, prompts(processor, (QUESTION, pictures[0])))
    mask = model.config.mask_token_id
    assert len(streamer.puts) == len(streamer.drafts) >= 5
    for drafts, put in zip(streamer.drafts, streamer.puts[1:], strict=False):
        assert 1 <= len(drafts) <= 3
        assert torch.equal(drafts[-1], put)
        masked = [int((draft == mask).sum()) for draft in drafts]
        assert masked == sorted(masked, reverse=True)
        for draft in drafts:
            assert torch.equal(draft[draft != mask], put[draft != mask])
    assert (streamer.drafts[1][0] == mask).any()


@pytest.mark.parametrize("kind", [TextStreamer, TextDiffusionStreamer])
def test_the_streamers_of_transformers_print_the_answer(translated_dir, processor, pictures, capsys, kind):
    model, inputs = load_model(translated_dir), prompts(processor, (QUESTION, pictures[0]))
    _, free = streamed(model, inputs)
    end = int(free[0, inputs["input_ids"].shape[1] + 9])
    capsys.readouterr()
    streamer = kind(processor.tokenizer, skip_prompt=True)
    _, sequences = streamed(model, inputs, streamer, eos_token_id=end)
    printed = capsys.readouterr().out
    if kind is TextDiffusionStreamer:
        printed, drafts = without_drafts(printed)
        assert drafts >= 6
    assert printed == processor.decode(sequences[0, inputs["input_ids"].shape[1] :]) + "\n"


def without_drafts(printed):
    """What stays on the terminal: a draft is printed between a saved and a restored cursor. And their number."""
    first, *drafts = printed.split("\0337")
    return first + "".join(draft.split("\0338\033[J")[1] for draft in drafts), len(drafts)
