"""Block decoding: with a cache as without one, a batch as each row alone, and every answer ends where it should."""

import pytest
import torch
from helpers import QUESTION, lively, media_of, prompts

from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.families import is_token_type, placeholder_ids

STATIC, DYNAMIC = "low_confidence_static", "low_confidence_dynamic"
LONG = "is there a circle, a triangle or a square in the image, and what color does it have?"


def generate(model, inputs, **settings):
    return model.generate(**inputs, **{"max_new_tokens": 14, **settings}, return_dict_in_generate=True)


def answers(output, inputs):
    return output.sequences[:, inputs["input_ids"].shape[1] :].tolist()


def placed(inputs, front, image_last=False):
    """A prompt moved on by `front` tokens, and with `image_last` without the text after its last image token."""
    ids = inputs["input_ids"]
    if image_last:
        ids = ids[:, : int(inputs["mm_token_type_ids"][0].nonzero().max()) + 1]
    ids = torch.cat([torch.arange(20, 20 + front)[None], ids], dim=1)
    of_tokens = [name for name in inputs if name in ("input_ids", "attention_mask") or is_token_type(name)]
    return {"input_ids": ids, **{name: value for name, value in inputs.items() if name not in of_tokens}}


def cut(answer, ends):
    """The answer up to its first end of sequence."""
    return next((answer[: place + 1] for place, token in enumerate(answer) if token in ends), answer)


def decode_slowly(model, inputs, remasking, threshold, steps, new=14):
    """Decodes a row without a cache: every step runs all tokens, and a token sees its own block and those before it.

    Returns the answer and, for each step, the block's tokens after it and the confidences of what it drew.
    """
    size, mask_id = model.config.block_size, model.config.mask_token_id
    forbidden = [mask_id, *placeholder_ids(model.base.config)]
    media = media_of(model, inputs)
    row = inputs["input_ids"][0].tolist()
    prompt, history = len(row), []
    own_blocks = model.config.block_origin == "response"
    begin = prompt if own_blocks else prompt // size * size
    before = -(-begin // size)
    while len(row) < prompt + new and not set(row[prompt:]) & set(model.generation_config.eos_token_ids):
        row += [mask_id] * (begin + size - len(row))
        blocks = [place // size for place in range(len(row))]
        if own_blocks:
            blocks[prompt:] = [before + (place - prompt) // size for place in range(prompt, len(row))]
        seen = torch.tensor([[[[key <= query for key in blocks] for query in blocks]]])
        positions = model.position_ids(torch.tensor([row]), torch.ones(1, len(row)), media)
        for step in range(steps):
            masked = [place for place in range(begin, begin + size) if row[place] == mask_id]
            if not masked:
                break
            with torch.no_grad():
                logits = model(torch.tensor([row]), seen, positions, **media).logits[0]
            chances = logits.softmax(-1)
            draws, sure = {}, {}
            for place in masked:
                ranked = chances[place].argsort(descending=True).tolist()
                draws[place] = next(token for token in ranked if token not in forbidden)
                sure[place] = float(chances[place, draws[place]])
            quota = size // steps + (step < size % steps)
            kept = [place for place in masked if sure[place] > threshold] if remasking == DYNAMIC else []
            if len(kept) < quota:
                kept = sorted(masked, key=lambda place: -sure[place])[:quota]
            for place in kept:
                row[place] = draws[place]
            history.append((row[begin:], [sure.get(place, 1.0) for place in range(begin, begin + size)]))
        begin += size
    return cut(row[prompt : prompt + new], model.generation_config.eos_token_ids), history


def assert_decoded_slowly(model, inputs, remasking=STATIC, threshold=0.5, steps=3):
    """`generate` draws, keeps and answers what decoding without a cache does. Returns the number of steps."""
    answer, history = decode_slowly(model, inputs, remasking, threshold, steps)
    assert len(set(answer)) > 3
    for fused_commit in (True, False):
        output = generate(
            model,
            inputs,
            remasking=remasking,
            confidence_threshold=threshold,
            denoising_steps=steps,
            fused_commit=fused_commit,
            output_history=True,
        )
        assert answers(output, inputs) == [answer]
        assert [step.tokens[0].tolist() for step in output.history] == [tokens for tokens, _ in history]
        found = torch.cat([step.confidence for step in output.history])
        torch.testing.assert_close(found, torch.tensor([sure for _, sure in history]), rtol=1e-3, atol=1e-5)
    return len(history)


@pytest.fixture
def questions(pictures):
    """Text alone, one image, several images."""
    return {"text": (LONG,), "image": (QUESTION, pictures[0]), "images": (LONG, pictures[1], pictures[2])}


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
@pytest.mark.parametrize("position_mode", ["native", "sequential"])
@pytest.mark.parametrize("kind", ["text", "image", "images"])
def test_decoding_with_a_cache_is_decoding_without(
    translated_dir, processor, questions, kind, position_mode, block_origin
):
    model = lively(translated_dir, block_origin=block_origin, position_mode=position_mode)
    assert_decoded_slowly(model, prompts(processor, questions[kind]))


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_static_steps(translated_dir, processor, questions, steps, block_origin):
    model = lively(translated_dir, block_origin=block_origin)
    assert_decoded_slowly(model, prompts(processor, questions["image"]), steps=steps)


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_dynamic_thresholds(translated_dir, processor, questions, block_origin):
    model = lively(translated_dir, block_origin=block_origin, block_size=8)
    inputs = prompts(processor, questions["images"])
    counts = [assert_decoded_slowly(model, inputs, DYNAMIC, threshold, 8) for threshold in (0.0, 0.2, 0.3, 1.0)]
    assert counts == sorted(set(counts))  # a higher threshold takes more steps
    assert_decoded_slowly(model, inputs, DYNAMIC, 0.3, 3)


@pytest.mark.parametrize("image_last", [False, True])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
@pytest.mark.parametrize("front", range(4))
def test_a_prompt_may_end_anywhere_in_a_block(translated_dir, processor, pictures, front, block_origin, image_last):
    model = lively(translated_dir, block_origin=block_origin)
    inputs = placed(prompts(processor, (QUESTION, pictures[1])), front, image_last)
    assert_decoded_slowly(model, inputs, steps=2)


@pytest.mark.parametrize("kind", ["text", "image", "images"])
def test_one_block_for_prompt_and_answer(translated_dir, processor, questions, kind):
    inputs = prompts(processor, questions[kind])
    model = lively(translated_dir, block_origin="absolute", block_size=inputs["input_ids"].shape[1] + 14)
    assert assert_decoded_slowly(model, inputs, steps=model.config.block_size) == 14


def assert_alone_as_batched(model, processor, rows, generators=None, **settings):
    """Each row of a batch has the answer and the forwards that it has alone. Returns the answers."""
    seeds = generators or [None] * len(rows)
    batch = prompts(processor, *rows)
    assert batch["attention_mask"].sum(-1).unique().numel() == len(rows)  # every row is padded differently
    output = generate(model, batch, generator=generators and [seeded(seed) for seed in seeds], **settings)
    found = []
    for row, (question, seed) in enumerate(zip(rows, seeds, strict=True)):
        inputs = prompts(processor, question)
        alone = generate(model, inputs, generator=generators and [seeded(seed)], **settings)
        answer = answers(alone, inputs)[0]
        found.append(answers(output, batch)[row])
        assert found[-1][: len(answer)] == answer
        assert set(found[-1][len(answer) :]) <= {model.generation_config.pad_token_id}
        assert output.forwards[row] == alone.forwards[0]
        assert float(output.tokens_per_forward[row]) == pytest.approx(len(answer) / int(alone.forwards[0]))
    return found


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rows(questions):
    """Prompts of different lengths, with and without images."""
    return [("hi",), *questions.values()]


@pytest.mark.parametrize("remasking", [STATIC, DYNAMIC])
@pytest.mark.parametrize("position_mode", ["native", "sequential"])
@pytest.mark.parametrize(("block_origin", "block_size"), [("response", 4), ("absolute", 4), ("absolute", 16)])
def test_a_row_in_a_batch_is_the_row_alone(
    translated_dir, processor, rows, block_origin, block_size, position_mode, remasking
):
    changes = {"block_origin": block_origin, "block_size": block_size, "position_mode": position_mode}
    model = lively(translated_dir, **changes)
    settings = {"remasking": remasking, "confidence_threshold": 0.3, "denoising_steps": 4, "eos_token_id": None}
    free = assert_alone_as_batched(model, processor, rows, **settings)
    assert len({tuple(answer) for answer in free}) == len(rows)
    settings["eos_token_id"] = [free[1][2], free[2][7]]
    ended = assert_alone_as_batched(model, processor, rows, **settings)
    assert ended != free


@pytest.mark.parametrize(("block_origin", "block_size"), [("response", 4), ("absolute", 4), ("absolute", 16)])
def test_a_commit_of_its_own_counts_for_rows_that_have_something_to_commit(
    translated_dir, processor, block_origin, block_size
):
    model = lively(translated_dir, block_origin=block_origin, block_size=block_size)
    rows = [("hi",), (QUESTION,), (LONG,)]
    assert_alone_as_batched(model, processor, rows, fused_commit=False, denoising_steps=2)


@pytest.mark.parametrize("remasking", [STATIC, DYNAMIC])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_a_row_with_its_own_generator_samples_the_same_in_any_batch(
    translated_dir, processor, rows, block_origin, remasking
):
    model = lively(translated_dir, block_origin=block_origin)
    settings = {"remasking": remasking, "confidence_threshold": 0.4, "temperature": 1.2, "top_k": 20, "top_p": 0.9}
    sampled = assert_alone_as_batched(model, processor, rows, [1, 2, 3, 4], **settings)
    assert sampled != assert_alone_as_batched(model, processor, rows, [5, 6, 7, 8], **settings)


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_after_its_end_a_row_is_padding_and_the_others_go_on(translated_dir, processor, rows, block_origin):
    model = lively(translated_dir, block_origin=block_origin)
    batch = prompts(processor, *rows)
    free = answers(generate(model, batch, eos_token_id=None, pad_token_id=0), batch)
    ends = [free[0][0], free[1][5], free[2][11], free[3][3]]
    expected = [cut(answer, ends) for answer in free]
    lengths = [len(answer) for answer in expected]
    assert len(set(lengths)) > 2
    assert max(lengths) < 14
    output = generate(model, batch, eos_token_id=ends, pad_token_id=0)
    found = answers(output, batch)
    assert found == [answer + [0] * (max(lengths) - len(answer)) for answer in expected]
    assert (output.tokens_per_forward * output.forwards).round().tolist() == lengths
    model.generation_config.pad_token_id = None
    unpadded = answers(generate(model, batch, eos_token_id=ends), batch)
    assert unpadded == [answer + ends[:1] * (max(lengths) - len(answer)) for answer in expected]


def count_forwards(model, inputs, **settings):
    """Calls of the base, and the output."""
    calls = []
    handle = model.base.register_forward_hook(lambda *_: calls.append(1))
    output = generate(model, inputs, **settings)
    handle.remove()
    return len(calls), output


@pytest.mark.parametrize("new", [1, 4, 5, 12])
@pytest.mark.parametrize("steps", [1, 3])
def test_forwards(translated_dir, processor, questions, steps, new):
    """S forwards a block, which read the prompt and commit, too; or one more for every block but the last."""
    model, inputs = lively(translated_dir), prompts(processor, questions["image"])
    blocks = -(-new // 4)
    for fused_commit, expected in ((True, steps * blocks), (False, (steps + 1) * blocks)):
        settings = {"max_new_tokens": new, "denoising_steps": steps, "eos_token_id": None}
        calls, output = count_forwards(model, inputs, fused_commit=fused_commit, **settings)
        assert calls == int(output.forwards[0]) == expected
        assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + new
        assert float(output.tokens_per_forward[0]) == pytest.approx(new / expected)


def test_no_forward_follows_the_last_rows_end(translated_dir, processor, rows):
    model, batch = lively(translated_dir), prompts(processor, *rows)
    free = answers(generate(model, batch, eos_token_id=None, denoising_steps=2), batch)
    ends = [answer[5] for answer in free]
    blocks = [-(-len(cut(answer, ends)) // 4) for answer in free]
    calls, output = count_forwards(model, batch, eos_token_id=ends, denoising_steps=2)
    assert output.forwards.tolist() == [2 * count for count in blocks]
    assert calls == 2 * max(blocks) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_mask_and_image_tokens_are_never_answered(translated_dir, processor, rows, block_origin, temperature):
    model, batch = lively(translated_dir, block_origin=block_origin), prompts(processor, *rows)
    forbidden = [model.config.mask_token_id, *placeholder_ids(model.base.config)]

    def bias(module, args, logits):
        logits[..., forbidden] += 1000.0

    model.get_output_embeddings().register_forward_hook(bias)
    output = generate(model, batch, temperature=temperature, output_history=True, eos_token_id=None)
    assert not set(forbidden) & {token for answer in answers(output, batch) for token in answer}
    assert output.history[0].confidence.min() < 1e-6  # they keep their share of the probability


@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_history_shows_each_step(translated_dir, processor, rows, block_origin):
    model, batch = lively(translated_dir, block_origin=block_origin), prompts(processor, *rows)
    output = generate(model, batch, output_history=True, eos_token_id=None, denoising_steps=2)
    canvas = torch.full((4, output.sequences.shape[1] + 8), -1)
    for before, step in zip([None, *output.history], output.history, strict=False):
        assert torch.equal(step.tokens == model.config.mask_token_id, step.masked)
        if before is not None and before.block == step.block:
            assert torch.equal(before.columns, step.columns)
            assert (step.masked <= before.masked).all()
            assert torch.equal(step.confidence < 1, before.masked)
        canvas.scatter_(1, step.columns, step.tokens)
    written = canvas[:, : output.sequences.shape[1]]
    assert torch.equal(written[written >= 0], output.sequences[written >= 0])
    assert (written[:, batch["input_ids"].shape[1] :] >= 0).all()
    assert generate(model, batch).history is None
    assert torch.equal(model.generate(**batch, max_new_tokens=14, eos_token_id=None, denoising_steps=2), output[0])


def test_a_model_in_training_mode_and_in_inference_mode(translated_dir, processor, questions):
    model, inputs = lively(translated_dir), prompts(processor, questions["image"])
    expected = answers(generate(model, inputs), inputs)
    with torch.inference_mode():
        assert answers(generate(model, inputs), inputs) == expected
    model.train()
    assert answers(generate(model, inputs), inputs) == expected
    assert model.training
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        generate(model, inputs)


def test_half_precision(translated_dir, processor, rows):
    model, batch = lively(translated_dir).bfloat16(), prompts(processor, *rows)
    engine = Engine(model)
    requests = engine.add_batch(**batch, max_new_tokens=14, eos_token_id=None)
    while engine.busy:
        engine.step()
    assert engine.cache.layers[0].keys.dtype == torch.bfloat16
    assert all(len(set(request.tokens)) > 3 for request in requests)


def test_decoding_without_a_cache_is_decoding_with_one(translated_dir, processor, rows):
    model, batch = lively(translated_dir), prompts(processor, *rows)
    expected, output = (generate(model, batch, use_cache=cached, eos_token_id=None) for cached in (True, False))
    assert torch.equal(output.sequences, expected.sequences)
