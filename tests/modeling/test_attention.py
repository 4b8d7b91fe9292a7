"""Attention implementations: each gets the mask in the form that it reads, and tiles are the dense mask."""

import pytest
import torch
from helpers import QUESTION, assert_same, conversation, gradients, load_model, prompts, some_records

from diffusionvl import RowDataset
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.modeling.attention import FLEX, TILE, as_attention_mask, attend_over_tiles, layer_masks
from diffusionvl.modeling.block_masks import TokenTags, dense_mask
from diffusionvl.objective.loss import IGNORED


def some_tags(length=40):
    blocks = torch.arange(length) // 4
    return TokenTags(*(tag[None] for tag in (blocks, torch.zeros_like(blocks), blocks // 5)))


def test_eager_gets_numbers_and_flash_is_refused():
    mask = dense_mask(some_tags())
    eager = as_attention_mask(mask, "eager", torch.float32)
    assert torch.equal(eager == 0, mask)
    assert eager[~mask].max() == torch.finfo(torch.float32).min
    assert as_attention_mask(mask, "sdpa", torch.float32) is mask
    assert as_attention_mask(mask, FLEX, torch.float32) is mask
    with pytest.raises(ValueError, match=r"flash_attention_2.*sdpa"):
        as_attention_mask(mask, "flash_attention_2", torch.float32)


def test_layers_of_several_types_get_a_mask_each(translated_dir):
    base = load_model(translated_dir).base
    tags = some_tags()
    positions = torch.arange(40)[None]
    masks = layer_masks(base, {"full_attention": None, "sliding_attention": 6}, tags, positions, positions)
    assert torch.equal(masks["full_attention"], dense_mask(tags))
    near = positions[:, :, None] - positions[:, None, :] < 6
    assert torch.equal(masks["sliding_attention"], dense_mask(tags) & near[:, None])
    attend_over_tiles(base)
    tiles = layer_masks(base, {"full_attention": None, "sliding_attention": 6}, tags, positions, positions)
    for kind, tiled in tiles.items():
        query, key = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
        zero = torch.zeros_like(query)
        assert torch.equal(tiled.mask_mod(zero, zero, query, key), masks[kind][0, 0])


def a_batch(model, processor, pictures, device="cpu", tiles=0):
    """Packed and padded rows with several pictures, several turns and two views, all supervised tokens masked."""
    records = [*some_records(pictures), conversation(("is it?", "no"), ("why?", "it is red"))]
    rows = RowDataset(records, ConversationEncoder(processor), model.config, views=2)
    rows.pad_to_multiple_of, rows.least_width = TILE, tiles * TILE
    batch = rows.collate([[rows[0], rows[2]], [rows[1], rows[3]]])
    labels = batch["labels"].flatten()
    indices = (labels != IGNORED).nonzero()[:, 0]
    ids = batch["input_ids"].flatten().index_fill(0, indices, model.config.mask_token_id).view_as(batch["input_ids"])
    names = ("block_ids", "stream_ids", "document_ids", "position_ids", "media_twins", "pixel_values", "image_grid_thw")
    inputs = {"input_ids": ids, "token_indices": indices, **{name: batch[name] for name in names}}
    return {name: value.to(device) for name, value in inputs.items()}, labels[indices].to(device)


@pytest.mark.filterwarnings("ignore::UserWarning")  # FlexAttention warns that it is not compiled
@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def test_tiles_give_the_logits_of_the_dense_mask(translated_dir, processor, pictures, stance):
    """Forward alone: FlexAttention has no backward pass on a CPU."""
    model = load_model(translated_dir)
    inputs, _ = a_batch(model, processor, pictures)
    with torch.no_grad(), torch.compiler.set_stance(stance):
        expected = model(**inputs).logits
        attend_over_tiles(model.base)
        found = model(**inputs).logits
    assert_same(found, expected)
    assert model.base.model.visual.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_of_other_lengths_are_not_compiled_anew(translated_dir, processor, pictures):
    """The second length is: from then on, lengths are variables. Forward alone."""
    model = load_model(translated_dir)
    attend_over_tiles(model.base)
    with torch.no_grad():
        for tiles in (6, 7):
            model(**a_batch(model, processor, pictures, tiles=tiles)[0])
        with torch.compiler.set_stance("fail_on_recompile"):
            for tiles in (8, 11, 16):
                model(**a_batch(model, processor, pictures, tiles=tiles)[0])


def test_a_model_that_attends_over_tiles_decodes_as_before(translated_dir, processor):
    tokens = processor.tokenizer("what is it?", return_tensors="pt")["input_ids"]
    model = load_model(translated_dir)
    expected = model.generate(input_ids=tokens, max_new_tokens=12)
    attend_over_tiles(model.base)
    assert torch.equal(model.generate(input_ids=tokens, max_new_tokens=12), expected)


def test_the_vision_tower_attends_as_it_is_told(translated_dir, processor, pictures):
    """On a GPU that is FlashAttention; the language model goes on as before."""
    model, inputs = load_model(translated_dir), prompts(processor, (QUESTION, *pictures))
    expected = model.generate(**inputs, max_new_tokens=8, output_history=True, return_dict_in_generate=True)
    model.base.model.visual.set_attn_implementation("eager")
    assert model.base.model.visual.config._attn_implementation == "eager"
    assert model.base.config.get_text_config()._attn_implementation == "sdpa"
    found = model.generate(**inputs, max_new_tokens=8, output_history=True, return_dict_in_generate=True)
    for step, other in zip(found.history, expected.history, strict=True):
        assert_same(step.confidence, other.confidence, 1e-4)


@pytest.mark.gpu
def test_tiles_give_the_gradients_of_the_dense_mask(translated_dir, processor, pictures):
    results = []
    for tiles in (False, True):
        model = load_model(translated_dir).cuda()
        if tiles:
            attend_over_tiles(model.base)
        inputs, targets = a_batch(model, processor, pictures, "cuda")
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, targets)
        loss.backward()
        results.append((loss, gradients(model)))
    (expected_loss, expected), (loss, found) = results
    assert_same(loss, expected_loss, 1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_same(found[name], gradient, 1e-3)
