"""The model: both layouts train the same, decoding sees what training saw, and a saved model is the same model."""

import pytest
import torch
from helpers import assert_same, collated, conversation, gradients, load_model, prompts, some_records
from transformers import AutoConfig, AutoModelForImageTextToText

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.modeling import batch as batch_diffusionvl
from diffusionvl.modeling.hooks import head_on
from diffusionvl.objective.loss import IGNORED
from diffusionvl.training.parts import Parts

QUESTION = "what is the color of the shape?"


def loss_of(model, batch, chosen):
    """Cross-entropy of the chosen supervised tokens, which are masked: [N] booleans over the supervised ones."""
    batch = dict(batch)
    labels = batch.pop("labels").flatten()
    for name in ("rows", "truncated", "dropped", "bad_samples"):
        batch.pop(name)
    indices = (labels != IGNORED).nonzero()[:, 0][chosen]
    ids = batch["input_ids"].flatten().index_fill(0, indices, model.config.mask_token_id)
    logits = model(**{**batch, "input_ids": ids.view_as(batch["input_ids"])}, token_indices=indices).logits
    return torch.nn.functional.cross_entropy(logits, labels[indices]), logits


@pytest.mark.parametrize("position_mode", ["native", "sequential"])
@pytest.mark.parametrize("supervision", ["assistant", "structural"])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_response_only_is_two_stream(translated_dir, processor, pictures, block_origin, supervision, position_mode):
    model = load_model(translated_dir, block_origin=block_origin, position_mode=position_mode)
    records = some_records(pictures)
    batches = [collated(model, processor, records, layout, supervision) for layout in ("response_only", "two_stream")]
    supervised = [batch["labels"][batch["labels"] != IGNORED] for batch in batches]
    assert torch.equal(*supervised)
    assert batches[0]["input_ids"].shape[1] < batches[1]["input_ids"].shape[1]
    chosen = torch.rand(len(supervised[0])) < 0.6
    losses, logits, grads = [], [], []
    for batch in batches:
        model.zero_grad()
        loss, own = loss_of(model, batch, chosen)
        loss.backward()
        losses.append(loss)
        logits.append(own)
        grads.append(gradients(model))
    assert_same(logits[0], logits[1])
    assert_same(losses[0], losses[1])
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert_same(grad, grads[1][name], 1e-4)
    assert any(Parts(model).of(name) == "vision_tower" and grad.any() for name, grad in grads[0].items())


def test_images_reach_noisy_twins(translated_dir, processor, pictures):
    """With one grid from index 0, a supervised block may hold image tokens: the noisy copy sees the picture, too."""
    model = load_model(translated_dir, block_origin="absolute", block_size=36)
    batch = collated(model, processor, [conversation((QUESTION, "red", pictures[0]))])
    assert batch["media_twins"].shape[1] > 0
    chosen = torch.ones(int((batch["labels"] != IGNORED).sum()), dtype=torch.bool)
    with torch.no_grad():
        _, seeing = loss_of(model, batch, chosen)
        _, blind = loss_of(model, batch | {"media_twins": batch["media_twins"][:, :0]}, chosen)
    assert not torch.allclose(seeing, blind, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("block_origin", ["response", "absolute"])
def test_training_logits_are_decoding_logits(translated_dir, processor, pictures, block_origin, steps, monkeypatch):
    """Fed the right answer block by block, cached decoding computes what one training row computes at once."""
    model = load_model(translated_dir, block_origin=block_origin)
    answer = "There is no circle and no triangle in it, and nothing else is drawn in the image."
    batch = collated(model, processor, [conversation((QUESTION, answer, pictures[0]))])
    inputs = prompts(processor, (QUESTION, pictures[0]))
    prompt_length = inputs["input_ids"].shape[1]
    supervised = batch["labels"][0] != IGNORED
    truth, blocks = batch["labels"][0][supervised], batch["block_ids"][0][supervised]
    captured = []

    def teacher(logits, *_):
        """Draws the right tokens for the masked places, the last of a window, the surest first; keeps the logits."""
        captured.append(logits)
        begin = 0 if block_origin == "response" else -(prompt_length % 8)
        end = begin + 8 * ((len(captured) - 1) // steps + 1)
        tokens = [int(truth[i]) if i < len(truth) else 0 for i in range(end - len(logits), end)]
        return torch.tensor(tokens), torch.linspace(1, 0.5, len(tokens))

    monkeypatch.setattr(batch_diffusionvl, "choose_tokens", teacher)
    model.generate(**inputs, denoising_steps=steps, max_new_tokens=len(truth))
    for index, block in enumerate(blocks.unique()):
        members = blocks == block
        for step in range(steps):
            # The first masked ones were the surest: with 2 steps the second one sees the first half.
            kept = 0 if step == 0 else -(-8 // steps)
            chosen = members.clone()
            chosen[members.nonzero()[:kept, 0]] = False
            if not chosen.any():
                continue
            with torch.no_grad():
                _, expected = loss_of(model, batch, chosen)
            assert_same(captured[index * steps + step], expected, 1e-4)


def test_save_and_load_through_auto_classes(translated_dir, processor, pictures, tmp_path):
    model = load_model(translated_dir, block_size=4, position_mode="sequential")
    model.generation_config.update(max_new_tokens=7, remasking="low_confidence_dynamic")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(loaded) is DiffusionVLForConditionalGeneration
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DiffusionVLConfig)
    assert (loaded.config.block_size, loaded.config.position_mode) == (4, "sequential")
    saved, read = (config.to_dict() | {"_name_or_path": ""} for config in (model.config, loaded.config))
    assert read == saved
    assert loaded.generation_config.max_new_tokens == 7
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, loaded.state_dict()[name]), name
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    inputs = prompts(processor, (QUESTION, pictures[0]))
    assert torch.equal(model.generate(**inputs), loaded.generate(**inputs))


@pytest.mark.parametrize("device_map", [None, "cpu"])
def test_loaded_models_attend_by_sdpa(translated_dir, device_map):
    """transformers resets the attention of nested configs to eager, which reads a boolean mask as numbers."""
    model = AutoModelForImageTextToText.from_pretrained(translated_dir, device_map=device_map)
    assert model.base.config.get_text_config()._attn_implementation == "sdpa"


def test_eager_is_sdpa(translated_dir, processor, pictures):
    sdpa = load_model(translated_dir)
    eager = DiffusionVLForConditionalGeneration.from_pretrained(translated_dir, attn_implementation="eager").eval()
    batch = collated(sdpa, processor, some_records(pictures))
    chosen = torch.rand(int((batch["labels"] != IGNORED).sum())) < 0.5
    with torch.no_grad():
        assert_same(loss_of(eager, batch, chosen)[1], loss_of(sdpa, batch, chosen)[1], 1e-4)


def test_flash_attention_is_refused(translated_dir, processor):
    model = load_model(translated_dir)
    model.base.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa"):
        model(**prompts(processor, (QUESTION,)))


def test_head_on_selects_before_the_head(translated_dir, processor, pictures):
    model = load_model(translated_dir)
    inputs = prompts(processor, (QUESTION, pictures[0]), (QUESTION,))
    inputs.pop("mm_token_type_ids")
    chosen = torch.tensor([1, 5, 30])
    with torch.no_grad():
        every = model(**inputs).logits
        some = model(**inputs, token_indices=chosen).logits
        assert model(**inputs).logits.shape == every.shape  # the hook is gone
    assert_same(some, every.flatten(0, 1)[chosen])
    with pytest.raises(RuntimeError), head_on(model.base, chosen):
        raise RuntimeError
    with torch.no_grad():
        assert model(**inputs).logits.shape == every.shape


def test_gradient_checkpointing_changes_nothing(translated_dir, processor, pictures):
    model = load_model(translated_dir).train()
    batch = collated(model, processor, some_records(pictures))
    chosen = torch.rand(int((batch["labels"] != IGNORED).sum())) < 0.5
    loss_of(model, batch, chosen)[0].backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.base.is_gradient_checkpointing
    loss_of(model, batch, chosen)[0].backward()
    for name, grad in gradients(model).items():
        assert_same(grad, expected[name])


def test_native_positions_are_the_bases_own(translated_dir, processor, pictures):
    model = load_model(translated_dir)
    inputs = prompts(processor, (QUESTION, pictures[0], pictures[1]), (QUESTION, pictures[2]))
    expected, _ = model.base.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    found = model.position_ids(inputs["input_ids"], inputs["attention_mask"], inputs)
    real = inputs["attention_mask"].bool()
    assert torch.equal(found[:, real], expected[:, real])
    assert not torch.equal(found[0][real], found[1][real])


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_size", 0), ("position_mode", "rope"), ("block_origin", "start"), ("mask_token_id", None)],
)
def test_a_bad_config_names_the_field(translated_dir, field, value):
    good = DiffusionVLConfig.from_pretrained(translated_dir).to_dict()
    with pytest.raises(ValueError, match=field):
        DiffusionVLForConditionalGeneration(DiffusionVLConfig.from_dict({**good, field: value}))


def test_a_window_over_positions_of_several_axes_is_refused(translated_dir):
    config = DiffusionVLConfig.from_pretrained(translated_dir)
    text = config.base_config.text_config
    text.use_sliding_window, text.sliding_window = True, 8
    text.layer_types = ["sliding_attention"] * text.num_hidden_layers
    with pytest.raises(ValueError, match=r"'qwen2_5_vl' has sliding-window layers.*use_sliding_window=False"):
        DiffusionVLForConditionalGeneration(config)


def test_a_4d_mask_needs_positions(translated_dir):
    model = load_model(translated_dir)
    with pytest.raises(ValueError, match="position_ids"):
        model(input_ids=torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 1, 2, 2).bool())
