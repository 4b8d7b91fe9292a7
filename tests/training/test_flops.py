"""Operations of a step: against PyTorch's own counter and against the mask itself."""

import pytest
import torch
from helpers import collated, load_model, some_records
from torch.utils.flop_counter import FlopCounterMode

from diffusionvl.modeling.block_masks import PADDING, TokenTags, dense_mask
from diffusionvl.training.cost.flops import PEAKS, StepFlops, attended_pairs, peak_of
from diffusionvl.training.cost.model_parts import count_patches
from diffusionvl.training.parts import Parts


def tags_of(batch):
    return TokenTags(batch["block_ids"], batch["stream_ids"], batch["document_ids"])


@pytest.mark.parametrize("layout", ["response_only", "two_stream", "clean"])
def test_pairs_are_those_of_the_mask(translated_dir, processor, pictures, layout):
    batch = collated(load_model(translated_dir), processor, some_records(pictures), layout)
    tags = tags_of(batch)
    real = tags.document != PADDING
    assert not real.all()
    expected = (dense_mask(tags)[:, 0] & real[:, :, None]).sum()
    assert attended_pairs(tags) == expected


def test_pairs_of_packed_documents_and_several_copies():
    """Two documents, the first with two noisy copies of its second block."""
    block = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1, 9]])
    stream = torch.tensor([[0, 0, 0, 1, 1, 2, 0, 0, 1, 0]])
    document = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, PADDING]])
    tags = TokenTags(block, stream, document)
    assert attended_pairs(tags) == dense_mask(tags)[:, 0, :-1].sum()


def step(model, batch):
    """Forward and backward of a batch; the operations of matrix products, as PyTorch counts them, and M."""
    names = ("input_ids", "block_ids", "stream_ids", "document_ids", "position_ids", "pixel_values", "image_grid_thw")
    carries = (batch["labels"] != -100).flatten().nonzero()[:, 0]
    with FlopCounterMode(display=False) as counter:
        logits = model(**{name: batch[name] for name in names}, token_indices=carries, use_cache=False).logits
        logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm)), len(carries)


@pytest.mark.parametrize("frozen", [(), ("vision_tower",), ("vision_tower", "projector")])
def test_matrix_products_are_pytorchs(translated_dir, processor, pictures, frozen):
    model = load_model(translated_dir).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(Parts(model).of(name) not in frozen)
    batch = collated(model, processor, some_records(pictures)[1:2])  # one row: no padding
    expected, logits = step(model, batch)
    flops = StepFlops(model)
    pairs = flops.pair * attended_pairs(tags_of(batch))
    assert float(flops(batch, logits) - pairs) == pytest.approx(expected, rel=0.02)
    text = model.config.get_text_config()
    assert flops.pair == 3 * 4 * text.num_hidden_layers * text.hidden_size


def test_patches_of_videos_count(translated_dir):
    model = load_model(translated_dir)
    images, videos = torch.zeros(4, 3 * 2 * 8 * 8), torch.zeros(8, 3 * 2 * 8 * 8)
    assert count_patches(model, {"pixel_values": images}) == 4
    assert count_patches(model, {"pixel_values": images, "pixel_values_videos": videos}) == 12
    assert count_patches(model, {}) == 0


def test_a_device_has_the_peak_it_is_given_or_that_of_its_name(monkeypatch):
    assert peak_of(torch.device("cpu"), None) is None
    assert peak_of(torch.device("cpu"), 1.5) == 1.5e12
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_of(torch.device("cuda"), None) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a new one")
    assert peak_of(torch.device("cuda"), None) is None
    names = list(PEAKS)  # the first that fits is taken: a longer name must come before its beginning
    assert not [(a, b) for n, a in enumerate(names) for b in names[n + 1 :] if a in b]
