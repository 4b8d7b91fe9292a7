"""Every family of bases goes through the same code: translated, trained, decoded, saved and loaded."""

from types import SimpleNamespace

import pytest
import torch
from decoding_requests import drafts_are_often_right
from helpers import assert_same, collated, conversation, cut, decode_slowly, gradients, media_of, prompts, some_records
from helpers import load_model as load_plain_model
from tiny_families import FAMILIES, save_base

from diffusionvl import BlockDiffusionConfig, BlockDiffusionTrainer, DiffusionVLForConditionalGeneration, RowDataset
from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.modeling.attention import FLEX, attend_over_tiles
from diffusionvl.modeling.families import (
    is_token_type,
    media_types,
)
from diffusionvl.objective.loss import IGNORED
from diffusionvl.training.parts import PARTS, Parts
from diffusionvl.translation.translate import translate

LONG = "is there a circle, a triangle or a square in the image, and what color does it have?"


def test_the_page_lists_every_family(request):
    """`docs/models.md` and the tests speak of the same families; a variant, behind a colon, shares its family's row."""
    page = (request.config.rootpath / "docs/models.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.endswith(" |")]
    listed = {row[0]: (row[1].strip("`"), row[2]) for row in rows if len(row) == 4 and row[1].startswith("`")}
    tested = {}
    for name, (build, images) in FAMILIES.items():
        base, _ = build()
        tested.setdefault(name.partition(":")[0], (base.config.model_type, "images, text" if images else "text"))
    assert listed == tested


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory, pictures):
    """A family's folders, its translation (blocks of 4) and its processor, and questions that it can read."""
    folder = tmp_path_factory.mktemp("family")
    save_base(request.param, str(folder / "base"))
    model, processor = translate(str(folder / "base"), block_size=4)
    save_checkpoint(model, processor, str(folder / "translated"))
    images = FAMILIES[request.param].images
    return SimpleNamespace(
        base=str(folder / "base"),
        folder=str(folder / "translated"),
        model=model,
        processor=processor,
        images=images,
        questions=[("no?",), (LONG,), *([("yes?", pictures[0]), (LONG, *pictures[1:])] if images else [])],
        records=some_records(pictures)
        if images
        else [conversation((LONG, "no"), ("why?", LONG)), conversation(("a", "b"))],
    )


@pytest.fixture(params=["block", "causal"])
def clean_attention(request, family, monkeypatch):
    """Each clean stream in turn; the family's translation has it while a test runs."""
    monkeypatch.setattr(family.model.config, "clean_attention", request.param)
    return request.param


def test_a_causal_clean_stream_and_blocks_of_one_token_are_the_base(family, clean_attention, monkeypatch):
    """Positions, masks of every layer and what the base does to its scores: all as in its own causal forward."""
    if clean_attention == "block":
        monkeypatch.setattr(family.model.config, "block_size", 1)
    for question in family.questions:
        inputs = prompts(family.processor, question)
        with torch.no_grad():
            expected = family.model.base(**inputs).logits
            found = family.model(**inputs).logits
        assert_same(found, expected)


def loss_of(model, batch, chosen):
    """Cross-entropy of the chosen supervised tokens, which are masked: [N] booleans over the supervised ones."""
    inputs = {
        name: value
        for name, value in batch.items()
        if name not in ("labels", "rows", "truncated", "dropped", "bad_samples")
    }
    labels = batch["labels"].flatten()
    indices = (labels != IGNORED).nonzero()[:, 0][chosen]
    ids = batch["input_ids"].flatten().index_fill(0, indices, model.config.mask_token_id).view_as(batch["input_ids"])
    logits = model(**{**inputs, "input_ids": ids}, token_indices=indices).logits
    return torch.nn.functional.cross_entropy(logits, labels[indices])


@pytest.mark.filterwarnings("ignore::UserWarning")  # FlexAttention warns that it is not compiled
@pytest.mark.usefixtures("clean_attention")
def test_tiles_are_the_dense_mask(family):
    batch = collated(family.model, family.processor, family.records)
    chosen = torch.ones(int((batch["labels"] != IGNORED).sum()), dtype=torch.bool)
    decoder = family.model.base.get_decoder()
    before = decoder.config._attn_implementation
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = loss_of(family.model, batch, chosen)
        attend_over_tiles(family.model.base)
        assert decoder.config._attn_implementation == (before if before == "eager" else FLEX)
        found = loss_of(family.model, batch, chosen)
    decoder.set_attn_implementation(before)
    assert_same(found, expected)


def test_a_batch_of_text_uses_the_vision_tower_and_stays_what_it_is(family, monkeypatch):
    """Every process of a run waits for the gradients of every parameter that another one has."""
    if not family.images:
        pytest.skip("reads text alone")
    texts = [record for record in family.records if not record.images]
    results = []
    for filled in (True, False):
        if not filled:
            monkeypatch.setattr(RowDataset, "_smallest_image", lambda rows: None)
        batch = collated(family.model, family.processor, texts)
        family.model.zero_grad()
        chosen = torch.ones(int((batch["labels"] != IGNORED).sum()), dtype=torch.bool)
        loss = loss_of(family.model, batch, chosen)
        loss.backward()
        results.append((loss, gradients(family.model)))
    (loss, found), (expected_loss, expected) = results
    assert_same(loss, expected_loss)
    batch = collated(family.model, family.processor, [record for record in family.records if record.images])
    family.model.zero_grad()
    loss_of(family.model, batch, torch.ones(int((batch["labels"] != IGNORED).sum()), dtype=torch.bool)).backward()
    assert gradients(family.model).keys() == found.keys()
    assert found.keys() > expected.keys()
    for name, gradient in found.items():
        if name in expected:
            assert_same(gradient, expected[name])
        else:
            assert not gradient.any()


@pytest.mark.usefixtures("clean_attention")
@pytest.mark.parametrize("supervision", ["assistant", "structural"])
def test_response_only_is_two_stream(family, supervision):
    results = []
    for layout in ("response_only", "two_stream"):
        batch = collated(family.model, family.processor, family.records, layout, supervision)
        count = int((batch["labels"] != IGNORED).sum())
        chosen = torch.rand(count, generator=torch.Generator().manual_seed(0)) < 0.6
        family.model.zero_grad()
        loss = loss_of(family.model, batch, chosen)
        loss.backward()
        results.append((batch["input_ids"].shape[1], count, loss, gradients(family.model)))
    (short, count, loss, grads), (long, other_count, other_loss, other_grads) = results
    assert short < long
    assert count == other_count
    assert_same(loss, other_loss)
    assert grads.keys() == other_grads.keys()
    largest = max(float(grad.abs().max()) for grad in grads.values())  # a key's bias has none, but for rounding
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], rtol=1e-4, atol=1e-6 * largest)
    part_of = Parts(family.model).of
    seeing = {name for name, grad in grads.items() if part_of(name) == "vision_tower" and grad.any()}
    assert bool(seeing) == family.images


def test_eager_attention_is_the_same(family):
    """Masks are numbers for eager attention; a base that caps its scores attends eagerly whatever is asked."""
    inputs = prompts(family.processor, family.questions[-1])
    own = family.model.base.config.get_text_config()._attn_implementation
    model = DiffusionVLForConditionalGeneration.from_pretrained(
        family.folder, attn_implementation="eager" if own == "sdpa" else None
    )
    assert model.base.config.get_text_config()._attn_implementation == "eager"
    with torch.no_grad():
        assert_same(model.eval()(**inputs).logits, family.model(**inputs).logits, 1e-4)


@pytest.mark.usefixtures("clean_attention")
def test_images_in_a_noisy_block_are_as_in_its_place(family, monkeypatch):
    """A block that holds prompt, images and response: its noisy copy sees all that an image brings, DeepStack, too."""
    if not family.images or family.model.base.config.model_type == "gemma3":  # which takes no such blocks
        pytest.skip("no image can stand in a supervised block")
    monkeypatch.setattr(family.model.config, "block_origin", "absolute")
    monkeypatch.setattr(family.model.config, "block_size", 256)
    batch = collated(family.model, family.processor, family.records[:1])
    media = media_of(family.model, batch)
    noisy = batch["stream_ids"][0] == 1
    ids = batch["input_ids"].clone()
    ids[0, batch["labels"][0] != IGNORED] = family.model.config.mask_token_id
    tags = {name: batch[name] for name in ("block_ids", "stream_ids", "document_ids", "position_ids", "media_twins")}
    in_place = ids.flatten().index_copy(0, tags["media_twins"][0], ids.flatten()[tags["media_twins"][1]])[None]
    with torch.no_grad():
        expected = family.model(
            in_place[:, noisy],
            position_ids=batch["position_ids"][..., noisy],
            block_ids=torch.zeros_like(ids[:, noisy]),
            **media,
        ).logits
        found = family.model(ids, **tags, **media).logits[:, noisy]
    assert_same(found, expected)


def test_lengths_are_known_without_pixels(family):
    encoder = ConversationEncoder(family.processor)
    for record in family.records:
        rendered, measured = (encoder.encode(record, render) for render in (True, False))
        assert torch.equal(measured.input_ids, rendered.input_ids)


def test_one_token_ends_a_response_everywhere(family):
    """Gemma's `<end_of_turn>` is not its end of sequence; decoding stops at both."""
    tokenizer, config = family.processor.tokenizer, family.model.config
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>" if tokenizer.eos_token == "<eos>" else "<|im_end|>")
    assert config.end_of_turn_ids == [end]
    assert set(family.model.generation_config.eos_token_ids) == {end, tokenizer.eos_token_id}
    batch = collated(family.model, family.processor, family.records)
    for labels in batch["labels"]:
        supervised = labels[labels != IGNORED]
        assert supervised[-1] == end
        assert tokenizer.eos_token_id == end or tokenizer.eos_token_id not in supervised


def answers(model, inputs, new):
    """Each row's answer up to its first end of turn."""
    output = model.generate(**inputs, max_new_tokens=new)[:, inputs["input_ids"].shape[1] :].tolist()
    return [cut(answer, model) for answer in output]


@pytest.mark.usefixtures("clean_attention")
def test_decoding_with_a_cache_is_decoding_without_and_a_batch_is_each_row_alone(family):
    model, processor = family.model, family.processor
    together = answers(model, prompts(processor, *family.questions), 9)
    for question, answer in zip(family.questions, together, strict=True):
        inputs = prompts(processor, question)
        inputs["input_ids"] = inputs["input_ids"].int()  # as some processors give them
        assert answers(model, inputs, 9) == [answer]
        assert cut(decode_slowly(model, inputs, 9), model) == answer
    assert len({token for answer in together for token in answer}) > 3


def test_a_saved_model_is_the_same(family):
    expected = prompts(family.processor, *family.questions)
    inputs = prompts(load_processor(family.folder), *family.questions)
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], value) for name, value in expected.items())
    with torch.no_grad():
        logits = family.model(**inputs).logits
        for loaded in (load_model(family.folder), DiffusionVLForConditionalGeneration.from_pretrained(family.folder)):
            assert type(loaded) is DiffusionVLForConditionalGeneration
            assert torch.equal(loaded.eval()(**inputs).logits, logits)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=5), family.model.generate(**inputs, max_new_tokens=5))


def test_both_objectives_train(family, tmp_path):
    """The AR loss is the base's own; block diffusion trains every weight that it trains, DeepStack's mergers, too."""
    trained = []
    for objective, folder in (("ar", family.base), ("block_diffusion", family.folder)):
        model = load_model(folder)
        rows = RowDataset(family.records, ConversationEncoder(family.processor), model.config)
        args = BlockDiffusionConfig(output_dir=str(tmp_path), objective=objective, use_cpu=True, disable_tqdm=True)
        trainer = BlockDiffusionTrainer(model.train(), args, train_dataset=rows)
        loss = trainer.compute_loss(model, rows.collate([rows[index] for index in range(len(rows))]))
        loss.backward()
        found = gradients(model)
        trained.append({name.removeprefix("base.") for name, grad in found.items() if grad.any()})
        model.zero_grad()
        pack = trainer.compute_loss(model, rows.collate([[rows[index] for index in range(len(rows))]]))
        pack.backward()
        assert_same(pack, loss)
        largest = max(float(gradient.abs().max()) for gradient in found.values())
        for name, gradient in gradients(model).items():  # some are zero but for rounding
            torch.testing.assert_close(gradient, found[name], rtol=1e-4, atol=1e-6 * largest)
        if objective == "ar":
            own = [own_loss(model, rows[index][0], family) for index in range(len(rows))]
            assert_same(loss, sum(own) / len(own))
    assert trained[0] == trained[1]
    assert any(Parts(model.base).of(name) == "vision_tower" for name in trained[0]) == family.images


def test_every_part_that_can_be_frozen_is_there(family):
    assert {Parts(family.model).of(name) for name, _ in family.model.named_parameters()} == set(
        PARTS if family.images else ["language_model"]
    )


def own_loss(model, row, family):
    """The loss that the base itself computes for a row."""
    types = media_types(model.config, row.input_ids[None])
    wanted = {name: types for name in prompts(family.processor, ("a",)) if is_token_type(name)}
    with torch.no_grad():
        return model(input_ids=row.input_ids[None], labels=row.labels[None], **wanted, **row.media).loss


def test_speculative_decoding_writes_what_the_stock_model_writes(family, monkeypatch):
    """Greedy, in fp64, by random masks and by drafts that are often right: ids of `generate` of the base."""
    model = load_plain_model(family.folder).double()
    model.base.set_experts_implementation("eager")  # the grouped one multiplies no fp64
    settings = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    for question in family.questions:
        inputs = prompts(family.processor, question)
        media = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        stock = model.base.generate(**media, do_sample=False, **settings)[0]
        row = inputs["input_ids"][0].tolist()
        for decoding in ("autoregressive", "speculative"):
            assert torch.equal(model.generate(**media, decoding=decoding, **settings)[0], stock)
        with monkeypatch.context() as patch:
            drafts_are_often_right(patch, {tuple(row): stock[len(row) :].tolist()})
            drafted = {"decoding": "speculative", "draft_size": 4, "return_dict_in_generate": True}
            output = model.generate(**media, **drafted, **settings)
        assert torch.equal(output.sequences[0], stock)
        assert int(output.forwards[0]) < 12
