"""Log-probabilities of an answer's tokens: those of the model itself, in the forward that wrote each of them."""

import pytest
import torch
from decoding_requests import LONG, drafts_are_often_right
from helpers import QUESTION, lively, prompts

from diffusionvl.modeling import batch
from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.errors import UserError

NEW = {"max_new_tokens": 10, "eos_token_id": None, "pad_token_id": 0, "top_logprobs": 3}


@pytest.fixture(scope="module")
def causal(translated_dir):
    return lively(translated_dir, clean_attention="causal").double()


@pytest.fixture(scope="module")
def rows(pictures):
    return [("hi",), (QUESTION, pictures[0]), (LONG, pictures[1], pictures[2])]


def answer(model, inputs, **settings):
    output = model.generate(**inputs, **{**NEW, "return_dict_in_generate": True, **settings})
    return output.sequences[:, inputs["input_ids"].shape[1] :].tolist(), output.logprobs


def equal(found, expected):
    """Whether the entries of two answers have the same tokens, and numbers that are close."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        numbers = [[entry.logprob, *(logprob for _, logprob in entry.top)] for entry in (one, other)]
        torch.testing.assert_close(torch.tensor(numbers[0]), torch.tensor(numbers[1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.4, "top_k": 5}, {"repetition_penalty": 2.0}], ids=str)
def test_autoregressive_ones_are_the_log_softmax_of_the_stock_model(causal, processor, rows, sampling):
    """Before truncation, penalties and temperature."""
    for row in rows:
        inputs = prompts(processor, row)
        generator = torch.Generator().manual_seed(1)
        (tokens,), (found,) = answer(causal, inputs, decoding="autoregressive", generator=generator, **sampling)
        whole = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
        kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(tokens)))
        given = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole), "mm_token_type_ids": kinds}
        with torch.no_grad():
            logits = causal.base(**given).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
        expected = logits.float().log_softmax(-1)
        top = expected.topk(3)
        assert len(found) == len(tokens)
        for place, (token, entry) in enumerate(zip(tokens, found, strict=True)):
            assert entry.logprob == pytest.approx(float(expected[place, token]), abs=1e-4)
            assert [one for one, _ in entry.top] == top.indices[place].tolist()
            assert [score for _, score in entry.top] == pytest.approx(top.values[place].tolist(), abs=1e-4)


def test_speculative_ones_are_those_of_the_verifier(causal, processor, rows, monkeypatch):
    together = prompts(processor, *rows)
    expected, logprobs = answer(causal, together, decoding="autoregressive")
    ids, real = together["input_ids"], together["attention_mask"].bool()
    known = {tuple(row[own].tolist()): tokens for row, own, tokens in zip(ids, real, expected, strict=True)}
    drafts_are_often_right(monkeypatch, known)
    for margin in (0.0, 2.0):
        tokens, found = answer(causal, together, decoding="speculative", draft_size=4, verify_margin=margin)
        assert tokens == expected
        for one, other in zip(found, logprobs, strict=True):
            equal(one, other)


def test_denoised_ones_are_those_of_the_step_that_wrote_the_token(translated_dir, processor, rows):
    model, seen = lively(translated_dir), []

    def record(ids, scores):
        seen.append(scores.clone())
        return scores / 3  # what comes after the model's own scores does not count

    inputs = prompts(processor, rows[1])
    settings = {"denoising_steps": 2, "logits_processor": [record], "output_history": True}
    output = model.generate(**inputs, **{**NEW, **settings}, return_dict_in_generate=True)
    (found,), tokens, written = output.logprobs, output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), {}
    for step, scores in zip(output.history, seen, strict=True):
        open_before = [column for column in step.columns[0].tolist() if column not in written]
        masked = dict(zip(step.columns[0].tolist(), step.masked[0].tolist(), strict=True))
        scored = zip(open_before, scores.log_softmax(-1), strict=True)
        written |= {column: own for column, own in scored if not masked[column]}
    for place, (token, entry) in enumerate(zip(tokens, found, strict=True)):
        expected = written[inputs["input_ids"].shape[1] + place]
        assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-5)
        assert [one for one, _ in entry.top] == expected.topk(3).indices.tolist()


@pytest.mark.parametrize("decoding", ["denoise", "speculative"])
def test_they_are_those_that_a_row_gets_alone_and_cost_the_others_nothing(causal, processor, rows, decoding):
    """Rows that ask for different numbers of them, or for none, share a step."""
    engine = Engine(causal, max_length=256)
    batched = [
        engine.add_request(**prompts(processor, row), **{**NEW, "top_logprobs": count, "decoding": decoding})
        for row, count in zip(rows, (None, 0, 3), strict=True)
    ]
    while engine.busy:
        engine.step()
    assert batched[0].logprobs == []
    for row, request, count in zip(rows[1:], batched[1:], (0, 3), strict=True):
        _, (own,) = answer(causal, prompts(processor, row), top_logprobs=count, decoding=decoding)
        assert len(request.logprobs) == len(request.tokens)
        assert all(len(entry.top) == count for entry in own)
        equal(request.logprobs, own)


def test_they_end_with_the_answer(causal, processor, rows):
    inputs = prompts(processor, rows[0])
    (tokens,), (whole,) = answer(causal, inputs)
    (cut,), (found,) = answer(causal, inputs, eos_token_id=tokens[4])
    assert cut == tokens[: tokens.index(tokens[4]) + 1]
    assert found == whole[: len(cut)]


def test_there_are_as_many_as_the_vocabulary_has_at_most(causal, processor, rows):
    vocabulary = causal.config.get_text_config().vocab_size
    _, (found,) = answer(causal, prompts(processor, rows[0]), max_new_tokens=1, top_logprobs=10**6)
    assert len(found[0].top) == vocabulary
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(UserError, match="top_logprobs must be an integer of at least 0"):
            answer(causal, prompts(processor, rows[0]), top_logprobs=wrong)


def test_nothing_is_computed_where_nobody_asks(causal, processor, rows, monkeypatch):
    monkeypatch.setattr(batch, "score_tokens", None)
    tokens, none = answer(causal, prompts(processor, rows[0]), top_logprobs=None)
    assert len(tokens[0]) == 10
    assert none is None
