"""Speculative decoding writes what autoregressive decoding writes, as the stock model's `generate` does."""

import random

import pytest
import torch
from decoding_requests import LONG, drafts_are_often_right
from helpers import QUESTION, assert_same, lively, prompts

from diffusionvl.modeling.draft_canvas import DraftCanvas
from diffusionvl.modeling.engine import Engine
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.sampling import Sampling, choose_next

NEW = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def model(translated_dir):
    return lively(translated_dir, clean_attention="causal").double()


@pytest.fixture
def rows(pictures):
    return [("hi",), (QUESTION, pictures[0]), (LONG, pictures[1], pictures[2]), (LONG,)]


def decode(model, inputs, decoding, **settings):
    output = model.generate(**inputs, **{**NEW, "return_dict_in_generate": True, **settings}, decoding=decoding)
    return output.sequences[:, inputs["input_ids"].shape[1] :].tolist(), output


def known_answers(batch, answers):
    """The answer to each prompt of a batch, by its ids without padding."""
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    return {tuple(row[own].tolist()): answer for row, own, answer in zip(ids, real, answers, strict=True)}


def test_autoregressive_decoding_is_the_stock_models(model, processor, rows):
    for row in rows:
        inputs = prompts(processor, row)
        stock = model.base.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        answer, output = decode(model, inputs, "autoregressive")
        assert answer == [stock[0, inputs["input_ids"].shape[1] :].tolist()]
        assert output.forwards.tolist() == [20]
        assert output.acceptance.tolist() == [[0, 20]]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3}, {"temperature": 0.9, "top_k": 40, "top_p": 0.9}])
@pytest.mark.parametrize("draft_size", [1, 2, 4])
def test_speculative_decoding_writes_the_same_tokens_in_fewer_forwards(
    model, processor, rows, monkeypatch, draft_size, sampling
):
    batch = prompts(processor, *rows)

    def seeds():
        return [torch.Generator().manual_seed(row) for row in range(len(rows))]

    expected, plain = decode(model, batch, "autoregressive", generator=seeds(), **sampling)
    assert len({token for answer in expected for token in answer}) > 20
    found, _ = decode(model, batch, "speculative", generator=seeds(), draft_size=draft_size, **sampling)
    assert found == expected
    drafts_are_often_right(monkeypatch, known_answers(batch, expected))
    found, output = decode(model, batch, "speculative", generator=seeds(), draft_size=draft_size, **sampling)
    assert found == expected
    assert (output.forwards < plain.forwards).all() or draft_size == 1
    assert output.acceptance.shape[1] <= draft_size + 1
    assert (output.acceptance * torch.arange(output.acceptance.shape[1])).sum(-1).tolist() == [20] * 4


def test_an_adapter_on_noisy_tokens_changes_drafts_alone(model, processor, rows, monkeypatch):
    """Rows together, at different places: what is written stays what the base writes. The default is to speculate."""
    adapter = {"rank": 4, "alpha": 8, "base": None, "fingerprint": None}
    batch, drafted = prompts(processor, *rows), []
    expected, _ = decode(model, batch, "autoregressive")
    plain, _ = decode(model, batch, "speculative", draft_size=4)
    model.config.draft_adapter = adapter
    adapted = type(model)(model.config, model.base).double()
    for change in adapted.draft.layers.values():
        torch.nn.init.normal_(change.up)
    own = DraftCanvas._draft

    def note(canvas, drafts, alone=False):
        drafted.append(drafts)
        own(canvas, drafts, alone)

    monkeypatch.setattr(DraftCanvas, "_draft", note)
    ids = batch["input_ids"][:1]
    with torch.no_grad():
        logits = model.base(ids).logits
    for decoding in (None, "autoregressive", "speculative"):
        assert decode(adapted, batch, decoding)[0] == plain == expected
        with torch.no_grad():
            assert torch.equal(adapted.base(ids).logits, logits)  # nothing of it stays in the base
    assert len({tuple(drafts) for drafts in drafted}) > 5
    drafts_are_often_right(monkeypatch, known_answers(batch, expected))
    assert decode(adapted, batch, "speculative", draft_size=4)[0] == expected


def test_ragged_rows_share_forwards_though_the_base_has_no_row_for_the_mask(model, processor, rows):
    """What fills the shorter rows is a token that the base can embed."""
    batch = prompts(processor, *rows)
    expected, _ = decode(model, batch, "autoregressive")
    model.config.mask_token_id = model.get_input_embeddings().num_embeddings
    model.config.draft_adapter = {"rank": 4, "alpha": 8, "base": None, "fingerprint": None}
    adapted, calls = type(model)(model.config, model.base).double(), []
    adapted.base.register_forward_pre_hook(lambda *_: calls.append(1))
    for decoding in ("autoregressive", "speculative"):
        calls.clear()
        found, output = decode(adapted, batch, decoding, draft_size=4)
        assert found == expected
        assert len(calls) <= output.forwards.max()


@pytest.mark.parametrize("layers", [None, ["o_proj", "down_proj"]])
@pytest.mark.parametrize("streams", [[[0, 0, 1, 1]], [[0, 1, 1, 1], [0, 0, 1, 1]], [[1, 1, 1, 1]], [[0, 1, 0, 1]]])
def test_the_adapter_is_a_product_of_matrices_beside_layers_at_noisy_tokens(model, streams, layers):
    """In place or not, on a slice or on indices: as if every layer were computed slowly, token by token."""
    model.config.draft_adapter = {"rank": 4, "alpha": 12, "base": None, "fingerprint": None, "layers": layers}
    adapted = type(model)(model.config, model.base).double()
    for change in adapted.draft.layers.values():
        torch.nn.init.normal_(change.up)
    streams = torch.tensor(streams)
    ids = torch.randint(5, 50, streams.shape)
    tags = {"block_ids": torch.arange(4).expand_as(ids), "stream_ids": streams}
    recorded = adapted(ids, **tags).logits
    with torch.no_grad():
        decoded = adapted(ids, **tags).logits
    hooks = []
    for name, change in adapted.draft.layers.items():

        def slowly(layer, args, output, change=change):
            slow = output.clone()
            for row, place in streams.nonzero().tolist():
                slow[row, place] += 3.0 * (change.up @ (change.down @ args[0][row, place]))
            return slow

        hooks.append(adapted.base.get_decoder().get_submodule(name.replace("/", ".")).register_forward_hook(slowly))
    assert layers is None or {name.rpartition("/")[2] for name in adapted.draft.layers} == {*layers}
    adapted.draft = None
    for module in adapted.base.modules():  # those of the adapter
        for key, hook in [*module._forward_hooks.items()]:
            if getattr(hook, "func", hook).__name__ in ("_change", "_embed_masks"):
                del module._forward_hooks[key]
    with torch.no_grad():
        expected = adapted(ids, **tags).logits
    assert_same(recorded.detach(), expected, 1e-9)
    assert_same(decoded, expected, 1e-9)
    assert not torch.equal(expected, model(ids, **{**tags, "stream_ids": None}).logits)


def test_an_adapter_of_layers_that_the_decoder_lacks_is_refused(model):
    model.config.draft_adapter = {"rank": 4, "alpha": 8, "base": None, "fingerprint": None, "layers": ["o_proj", "wo"]}
    with pytest.raises(UserError, match=r"cannot change wo; the decoder's linear layers are down_proj, .*q_proj"):
        type(model)(model.config, model.base)


def test_a_clean_token_with_the_masks_id_is_the_bases_own(model):
    """Its embedding is the adapter's where it masks, and the base's where it is a word."""
    model.config.draft_adapter = {"rank": 4, "alpha": 8, "base": None, "fingerprint": None}
    mask = model.config.mask_token_id
    ids = torch.tensor([[7, mask, 9, mask, mask]])
    adapted = type(model)(model.config, model.base).double()
    streams = torch.tensor([[0, 0, 0, 1, 1]])
    tags = {"block_ids": torch.tensor([[0, 1, 2, 3, 3]]), "stream_ids": streams}
    with torch.no_grad():
        clean = model.base(ids[:, :3]).logits
        assert torch.equal(adapted.base(ids[:, :3]).logits, clean)
        before = adapted(ids, **tags).logits
        assert_same(before[:, :3], clean)
        adapted.draft.mask_embedding += 1
        after = adapted(ids, **tags).logits
        assert torch.equal(after[:, :3], before[:, :3])
        assert not torch.equal(after[:, 3:], before[:, 3:])


def test_all_ways_to_decode_share_an_engine(model, processor, rows, monkeypatch):
    """Rows of all kinds, in any order of arrival: each as alone."""
    kinds = ["denoise", "autoregressive", "speculative"]
    expected = {
        (row, kind): decode(model, prompts(processor, rows[row]), kind)[0][0] for row in range(4) for kind in kinds
    }
    answers = {}
    for row, question in enumerate(rows):
        answers |= known_answers(prompts(processor, question), [expected[row, "autoregressive"]])
    drafts_are_often_right(monkeypatch, answers)
    for seed in range(3):
        rng = random.Random(seed)
        engine = Engine(model, max_batch_size=rng.choice([2, 5]), max_length=128, static_shapes=seed == 2)
        order, live = rng.sample([*expected], len(expected)), {}
        while order or engine.busy:
            for _ in range(min(rng.choice([0, 1, 3]), len(order))):
                key = order.pop()
                live[key] = engine.add_request(**prompts(processor, rows[key[0]]), **NEW, decoding=key[1])
            if rng.random() < 0.1:
                engine.abort(rng.choice([*live.values()])) if live else None
            engine.step()
        for key, request in live.items():
            assert request.tokens == expected[key][: len(request.tokens)]
            assert request.finish_reason in ("length", "abort")
        engine.check_integrity()


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.6}, {"min_new_tokens": 12}, {"use_cache": False}])
def test_what_rules_the_choice_rules_it_in_both_ways_to_decode(model, processor, rows, monkeypatch, settings):
    batch = prompts(processor, *rows)
    free, _ = decode(model, batch, "autoregressive")
    ends = {"eos_token_id": [answer[5] for answer in free]}
    changed, neutral = "use_cache" in settings, {"repetition_penalty": 1.0, "min_new_tokens": 0}
    for own in ({**NEW, **settings}, {**NEW, **ends, **settings}):
        expected, _ = decode(model, batch, "autoregressive", **own)
        with monkeypatch.context() as patch:
            drafts_are_often_right(patch, known_answers(batch, [[*answer, *[0] * 20] for answer in expected]))
            assert decode(model, batch, "speculative", draft_size=4, **own)[0] == expected
        changed |= expected != decode(model, batch, "autoregressive", **{**own, **neutral})[0]
    assert changed


def test_close_choices_are_verified_alone_in_half_precision(model, processor, rows, monkeypatch):
    """Each row by itself: then a forward of one token is what an autoregressive step is."""
    model = model.bfloat16()
    for row in rows:
        inputs = prompts(processor, row)
        expected, _ = decode(model, inputs, "autoregressive")
        with monkeypatch.context() as patch:
            drafts_are_often_right(patch, known_answers(inputs, expected))
            found, output = decode(model, inputs, "speculative", draft_size=4, verify_margin=1.0)
            assert found == expected
            everything, every = decode(model, inputs, "speculative", draft_size=4, verify_margin=1e9)
            assert everything == expected
            assert every.forwards >= output.forwards


def test_the_noise_depends_on_seed_column_and_token_alone():
    sampling = Sampling(temperature=1.0, decoding="autoregressive")
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    tokens, _, _ = choose_next(logits.expand(20_000, 4), sampling, [7], [range(20_000)])
    found = tokens.bincount(minlength=4) / len(tokens)
    chances = logits.softmax(-1)
    assert ((found - chances).abs() < 4.5 * (chances * (1 - chances) / len(tokens)).sqrt()).all()
    again, _, _ = choose_next(logits.expand(30, 4), sampling, [3, 7], [range(10), range(100, 120)])
    assert torch.equal(again[10:], tokens[100:120])


def test_samples_have_the_bases_distribution(model, processor, monkeypatch):
    """Chi-square of sampled texts of three tokens against the product of the base's own chances."""
    count, kept = 3000, 3
    inputs = prompts(processor, ("hi",))
    prompt = inputs["input_ids"][0].tolist()
    chances = {(): 1.0}
    for _ in range(3):
        rows = torch.tensor([[*prompt, *text] for text in chances])
        with torch.no_grad():
            logits = model.base(rows).logits[:, -1] / 1.5
        logits[:, model.config.mask_token_id] = -torch.inf
        best, ids = logits.topk(kept)
        chances = {
            (*text, int(token)): before * float(chance)
            for (text, before), own, row in zip(chances.items(), best.softmax(-1), ids, strict=True)
            for chance, token in zip(own, row, strict=True)
        }
    likely = max(chances, key=chances.get)
    drafts_are_often_right(monkeypatch, {tuple(prompt): [*likely, *[0] * 9]})
    batch = {name: value.expand(250, *value.shape[1:]) for name, value in inputs.items()}
    found = dict.fromkeys(chances, 0)
    for seed in range(count // 250):
        settings = {"temperature": 1.5, "top_k": kept, "max_new_tokens": 3, "draft_size": 3}
        generator = torch.Generator().manual_seed(seed)
        for text in decode(model, batch, "speculative", generator=generator, **settings)[0]:
            found[tuple(text)] += 1
    frequent = [text for text in chances if count * chances[text] >= 5]
    rest = 1 - sum(chances[text] for text in frequent)
    cells = [(found[text], count * chances[text]) for text in frequent]
    cells.append((count - sum(seen for seen, _ in cells), max(count * rest, 1e-9)))
    statistic = sum((seen - due) ** 2 / due for seen, due in cells if due > 1)
    freedom = len(cells) - 1
    assert freedom > 5
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("decoding", ["autoregressive", "speculative"])
def test_a_clean_stream_of_blocks_cannot_verify(translated_dir, processor, decoding):
    with pytest.raises(UserError, match=rf"decoding='{decoding}'.*clean_attention='block'.*decoding='denoise'"):
        lively(translated_dir).generate(**prompts(processor, ("hi",)), decoding=decoding)


def test_drafts_are_streamed_and_shown(model, processor, monkeypatch):
    inputs = prompts(processor, (LONG,))
    expected, plain = decode(model, inputs, "autoregressive", output_history=True)
    drafts_are_often_right(monkeypatch, known_answers(inputs, expected))
    _, output = decode(model, inputs, "speculative", draft_size=4, output_history=True)
    for result in (plain, output):
        written = [step.tokens[0, ~step.masked[0]].tolist() for step in result.history]
        assert [token for tokens in written for token in tokens] == expected[0]
    engine = Engine(model)
    request = engine.add_request(**inputs, **NEW, decoding="speculative", draft_size=4)
    chunks = [*engine.stream(request, drafts=True)]
    assert [token for chunk in chunks if not chunk.draft for token in chunk.tokens] == expected[0]
    assert any(chunk.draft and chunk.tokens for chunk in chunks)
