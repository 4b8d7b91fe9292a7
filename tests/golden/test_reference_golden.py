"""Values computed with the reference implementation: noise, loss, gradients and decoded ids must be the same.

`$DIFFUSIONVL_GOLDEN` names other files of the same format (a path without its suffix), `$DIFFUSIONVL_GOLDEN_MODEL`
another checkpoint.
"""

import pytest
import torch
from golden_values import EOS_ID, GENERATE, MASK_ID, MODEL, PAD_ID, TRAIN, tensors
from helpers import assert_same
from transformers import AutoModelForImageTextToText

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.data.collate import collate
from diffusionvl.data.streams import build_row
from diffusionvl.modeling.block_grid import block_grid
from diffusionvl.modeling.families import placeholder_ids, position_axes, sequential_positions
from diffusionvl.objective.corruption import mask_tokens
from diffusionvl.objective.loss import IGNORED, cross_entropy, loss_counts, token_weights
from diffusionvl.objective.noise_schedule import reference_t, weight


def load(block_size):
    base = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32)
    config = DiffusionVLConfig(
        base.config,
        block_size=block_size,
        mask_token_id=MASK_ID,
        position_mode="sequential",
        block_origin="absolute",
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return DiffusionVLForConditionalGeneration(config, base).eval()


def build_batch(model, golden, layout):
    """The golden rows as a batch; the pixels are those of the whole batch already."""
    axes, block_size = position_axes(model.base.config), model.config.block_size
    rows = []
    for ids, labels, real in zip(golden["input_ids"], golden["labels"], golden["attention_mask"], strict=True):
        ids, labels = ids[real], labels[real]
        positions = sequential_positions(torch.ones_like(ids)[None], axes)[:, 0]
        grid = block_grid(len(ids), block_size)
        # The golden labels end at block edges or in padding, so nothing is filled up.
        rows.append(build_row(ids, labels, grid, positions, block_size, fill_id=-1, layout=layout))
    batch = collate([[row] for row in rows], PAD_ID, placeholder_ids(model.base.config))
    return batch | {name: golden[name] for name in ("pixel_values", "image_grid_thw")}


@pytest.mark.parametrize("name", TRAIN)
def test_the_reference_order_reproduces_t_and_masked(name):
    golden, case = tensors("train", name), TRAIN[name]
    t = reference_t(golden["eps"]).repeat_interleave(case["block_size"], dim=1)
    assert_same(t[:, : golden["t"].shape[1]], golden["t"], 1e-6)  # the last block of a row may be cut
    supervised = golden["labels"] != IGNORED
    noisy = mask_tokens(golden["input_ids"], supervised, golden["t"], golden["move_uniform"], MASK_ID)
    assert torch.equal(noisy.masked, golden["masked"])
    assert noisy.masked.any()


@pytest.mark.parametrize("layout", ["response_only", "two_stream"])
@pytest.mark.parametrize("name", TRAIN)
def test_loss_and_gradients(name, layout):
    golden = tensors("train", name)
    model = load(TRAIN[name]["block_size"])
    batch = build_batch(model, golden, layout)
    labels = batch.pop("labels")
    batch.pop("rows")
    supervised = (labels != IGNORED).flatten()
    # Both layouts hold the supervised tokens in the order of the clean row.
    chosen = golden["masked"][golden["labels"] != IGNORED]
    indices = supervised.nonzero()[:, 0][chosen]
    batch["input_ids"] = batch["input_ids"].flatten().index_fill(0, indices, MASK_ID).view_as(batch["input_ids"])
    logits = model(**batch, token_indices=indices).logits
    assert_same(logits, golden["logits_at_masked"])
    targets = labels.flatten()[indices]
    weights = token_weights(labels, "per_sample").flatten()[indices] * weight(golden["t"][golden["masked"]])
    loss = (cross_entropy(logits, targets) * weights).sum() / loss_counts(labels, "per_sample").sum()
    assert_same(loss, golden["loss"])
    loss.backward()
    layers = model.base.get_decoder().layers
    assert_same(layers[0].self_attn.q_proj.weight.grad, golden["grad.q_proj0"])
    assert_same(layers[2].mlp.down_proj.weight.grad, golden["grad.down2"])
    assert_same(model.get_output_embeddings().weight.grad, golden["grad.lm_head"])


@pytest.mark.parametrize("fused_commit", [True, False])
@pytest.mark.parametrize("name", GENERATE)
def test_decoding_gives_the_same_ids(name, fused_commit):
    golden, case = tensors("generate", name), GENERATE[name]
    output = load(case["block_size"]).generate(
        input_ids=golden["input_ids"],
        pixel_values=golden["pixel_values"],
        image_grid_thw=golden["image_grid_thw"],
        max_new_tokens=case["gen_length"],
        denoising_steps=case["steps"],
        remasking=case["strategy"],
        confidence_threshold=case.get("confidence_threshold", 0.85),
        fused_commit=fused_commit,
        return_dict_in_generate=True,
    )
    expected = golden["output_ids"][0].tolist()
    answer = output.sequences[0, golden["input_ids"].shape[1] :].tolist()
    if EOS_ID in expected:
        expected = expected[: expected.index(EOS_ID) + 1]
    assert answer == expected
    if case["prompt_length"] >= case["block_size"]:  # else it is full diffusion, which commits nothing
        # The reference also commits the last block, for nobody to read.
        assert int(output.forwards[0]) == case["forwards"] - 1 or fused_commit
        assert int(output.forwards[0]) < case["forwards"]
