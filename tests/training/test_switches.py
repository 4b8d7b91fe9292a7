"""Switches of the noise, the block sizes and the targets: in packs, views, adapters, resumed runs; their faults."""

import shutil

import pytest
import torch
from helpers import assert_same, conversation, logits_of, losses, some_records
from safetensors.torch import load_file
from trainers import trainer_of
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusionvl import BlockDiffusionConfig
from diffusionvl.checkpoints.checkpoint import Checkpoint, save_checkpoint
from diffusionvl.modeling.block_masks import CLEAN
from diffusionvl.objective.loss import IGNORED
from diffusionvl.train import main
from diffusionvl.training.losses import block_diffusion_loss, has_twin
from diffusionvl.training.next_tokens import load_teacher, teacher_logits

SWITCHES = {
    "growth": {"block_growth": [1, 2, 8], "growth_steps": [0.25, 1]},
    "random": {"random_block_size": True},
    "random pairs": {"random_block_size": True, "complementary": True},
    "slope": {"mask_slope": 0.7},
    "own": {"own_states": True},
    "certainty": {"certainty_weight": 2.0},
    "own teacher": {"targets": "teacher", "own_states": True, "ar_weight": 0.5},
    "own answers": {"on_policy_from": 0.5, "on_policy_tokens": 11},
}


def gradients(trainer, packs, step):
    """Gradients of one step over all records, in rows of several documents."""
    rows = trainer.train_dataset
    batch = rows.collate([[rows[index] for index in pack] for pack in packs])
    trainer.state.global_step, trainer.state.max_steps = step, 8
    (batch,), count = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=count)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("step", [0, 2, 6])
@pytest.mark.parametrize("name", SWITCHES)
def test_packs_with_two_views_take_the_step_of_rows(causal_dir, processor, pictures, tmp_path, name, step):
    settings = {"normalizer": "tokens", **SWITCHES[name]}
    trainer = trainer_of(causal_dir, processor, some_records(pictures), tmp_path, views=2, **settings)
    alone, packed = (gradients(trainer, packs, step) for packs in ([[0], [1], [2]], [[2, 0], [1]]))
    assert packed[0] == pytest.approx(float(alone[0]), rel=1e-5)
    for parameter, gradient in alone[1].items():
        assert_same(packed[1][parameter], gradient)


def test_certainty_adds_the_entropy_of_the_masked_tokens_that_are_right(causal_dir, processor, pictures, tmp_path):
    trainer = trainer_of(causal_dir, processor, some_records(pictures), tmp_path)
    rows, model = trainer.train_dataset, trainer.model.eval()
    batch = rows.collate([rows[index] for index in range(3)])
    mask_id = model.config.mask_token_id
    plain = block_diffusion_loss(model, batch, trainer.args, mask_id, 0)
    logits = logits_of(model, batch, plain.noise.x_t)
    right = plain.tokens[::2]  # random weights would predict none of them
    batch["labels"].view(-1)[right] = logits[right].argmax(-1)
    plain = block_diffusion_loss(model, batch, trainer.args, mask_id, 0)
    trainer.args.certainty_weight = 0.5
    certain = block_diffusion_loss(model, batch, trainer.args, mask_id, 0)
    assert torch.equal(plain.surprise, certain.surprise)
    assert torch.isin(right, plain.tokens[plain.correct]).all()
    added = certain.weighted - plain.weighted
    assert (added[~plain.correct] == 0).all()
    share = plain.weighted / plain.surprise  # the weight of each token
    entropy = torch.distributions.Categorical(logits=logits[plain.tokens[plain.correct]]).entropy()
    assert_same(added[plain.correct], 0.5 * entropy * share[plain.correct], 1e-3)


def test_own_states_mask_what_the_model_is_least_certain_of(causal_dir, processor, pictures, tmp_path):
    trainer = trainer_of(causal_dir, processor, some_records(pictures), tmp_path, own_states=True)
    rows, model = trainer.train_dataset, trainer.model.eval()
    batch = rows.collate([rows[index] for index in range(3)])
    mask_id, noisy = model.config.mask_token_id, batch["labels"] != IGNORED
    noise = block_diffusion_loss(model, batch, trainer.args, mask_id, 0).noise
    sure = logits_of(model, batch, batch["input_ids"].masked_fill(noisy, mask_id)).softmax(-1).max(-1).values
    sure = sure.view_as(noisy)
    numbers = batch["document_ids"] * 1000 + batch["block_ids"]
    for number in numbers[noisy].unique():
        own = noisy & (numbers == number) & (batch["stream_ids"] != CLEAN)
        masked, kept = sure[own & noise.masked], sure[own & ~noise.masked]
        assert len(masked) == round(float(noise.t[own][0] * own.sum())) > 0
        assert not len(kept) or masked.max() <= kept.min()


def test_own_states_weigh_a_block_by_the_share_of_it_that_is_masked(causal_dir, processor, pictures, tmp_path):
    """Where every token is masked, the loss is its cross-entropy, however near 0 the level was drawn."""
    settings = {"own_states": True, "block_growth": [1, 8], "growth_steps": [0.9], "normalizer": "tokens"}
    trainer = trainer_of(causal_dir, processor, some_records(pictures), tmp_path, ar_weight=0.0, **settings)
    rows, model = trainer.train_dataset, trainer.model.eval()
    trainer.state.max_steps = 8
    batch = trainer._with_block_sizes(rows.collate([rows[index] for index in range(3)]))
    losses = block_diffusion_loss(model, batch, trainer.args, model.config.mask_token_id, 0)
    assert len(losses.tokens) == int((batch["labels"] != IGNORED).sum())
    assert_same(losses.weighted, losses.surprise)


SIZES, OWN = "--random_block_size yes", "--on_policy_from 1 --on_policy_tokens 9"
PACKED = "--packing yes --noisy_views 2 --teacher"


@pytest.mark.parametrize(
    "extra", [SIZES, f"{SIZES} --lora_r 4", f"{SIZES} {PACKED}", f"{OWN} --lora_r 4", f"{OWN} {PACKED}"]
)
def test_a_resumed_run_is_the_uninterrupted_one(recipe, base_dir, causal_dir, tmp_path, extra):
    extra = [*extra.split(), *[base_dir] * extra.endswith("--teacher")]
    settings = ["--own_states", "yes", "--certainty_weight", "1", "--ar_weight", "0.5", *extra]
    argv = [recipe, "--model", causal_dir, "--targets", "teacher", "--teacher_top_k", "4", *settings]
    argv += ["--max_steps", "4"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main([*argv, "--output_dir", str(whole)]) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    (resumed / "trainer_state.json").unlink()
    assert main([*argv, "--output_dir", str(resumed)]) == 0
    assert losses(resumed) == losses(whole)
    (name,) = (path.name for path in whole.glob("*model*.safetensors"))
    expected = load_file(whole / name)
    for parameter, value in load_file(resumed / name).items():
        assert torch.equal(value, expected[parameter])


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("packs", [[[0], [1], [2]], [[2, 0], [1]]])
def test_a_frozen_teacher_tells_what_the_base_predicts_before_each_masked_token(
    base_dir, causal_dir, processor, pictures, tmp_path, packs, share
):
    """An untrained translation has its base's own clean stream, so both teachers say the same."""
    records = [*some_records(pictures)[:2], conversation(("is it?", "no, it is a circle and nothing else"))]
    settings = {"targets": "teacher", "teacher_top_k": 5, "teacher_weight": share}
    found = []
    for given in ({}, {"teacher": base_dir}):
        trainer = trainer_of(causal_dir, processor, records, tmp_path, views=2, **settings, **given)
        found.append(gradients(trainer, packs, 0))
    assert found[1][0] == pytest.approx(float(found[0][0]), rel=1e-5)
    for parameter, gradient in found[0][1].items():
        assert_same(found[1][1][parameter], gradient, 1e-4)
    assert all(not parameter.requires_grad for parameter in trainer.teacher.parameters())


def test_a_frozen_teacher_serves_a_clean_stream_of_blocks(base_dir, translated_dir, processor, pictures, tmp_path):
    settings = {"targets": "teacher", "teacher": base_dir, "random_block_size": True}
    trainer = trainer_of(translated_dir, processor, some_records(pictures), tmp_path, **settings)
    alone, packed = (gradients(trainer, packs, 1) for packs in ([[0], [1], [2]], [[2, 0], [1]]))
    assert packed[0] == pytest.approx(float(alone[0]), rel=1e-5)
    batch = trainer.train_dataset.collate([trainer.train_dataset[0]])
    batch["labels"] = batch["labels"].masked_fill(~has_twin(batch), IGNORED)
    before = batch["twins"][batch["labels"] != IGNORED] - 1
    clean = batch["input_ids"][:, : int((batch["stream_ids"] == CLEAN).sum())]
    types = {"mm_token_type_ids": (clean == trainer.teacher.config.image_token_id).long()}
    media = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        expected = trainer.teacher(input_ids=clean, **types, **media).logits[0, before]
    assert_same(teacher_logits(trainer.teacher, batch, before), expected, 1e-4)


@pytest.mark.parametrize("top_k", [None, 4])
def test_a_teacher_with_more_rows_for_the_same_tokens_teaches_the_same(
    base_dir, causal_dir, processor, pictures, tmp_path, top_k
):
    """As Qwen2.5-VL 7B has more than 3B; no token stands for the others."""
    wide = Checkpoint(base_dir).model()
    wide.resize_token_embeddings(wide.get_input_embeddings().num_embeddings + 64, mean_resizing=False)
    with torch.no_grad():
        wide.get_output_embeddings().weight[-64:] *= 0
    save_checkpoint(wide, Checkpoint(base_dir).processor, str(tmp_path / "wide"))
    found = []
    for teacher in (base_dir, str(tmp_path / "wide")):
        settings = {"targets": "teacher", "teacher_top_k": top_k, "teacher": teacher}
        trainer = trainer_of(causal_dir, processor, some_records(pictures), tmp_path, **settings)
        found.append(gradients(trainer, [[0], [1]], 0))
    assert found[1][0] == pytest.approx(float(found[0][0]), rel=1e-5)


@pytest.mark.parametrize(
    ("teacher", "part"),
    [
        ("translated_dir", "is a block-diffusion model"),
        ("other_base", "has other tokens than the model"),
        ("without_eyes", "reads other pictures or positions than the model"),
        ("other_patches", "reads other pictures or positions than the model"),
    ],
)
def test_a_teacher_that_cannot_teach(request, base_dir, translated_dir, processor, tmp_path, teacher, part):
    if teacher == "other_base":
        path = str(tmp_path / "other")
        shutil.copytree(base_dir, path)
        other = Checkpoint(base_dir).processor
        other.tokenizer.add_tokens(["unheard of"])
        other.save_pretrained(path)
    elif teacher == "other_patches":
        path = str(tmp_path / "patches")
        shutil.copytree(base_dir, path)
        other = Checkpoint(base_dir).processor
        other.image_processor.patch_size *= 2
        other.save_pretrained(path)
    elif teacher == "without_eyes":
        path = str(tmp_path / "text")
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Qwen2Config(vocab_size=512, num_key_value_heads=2, **sizes)
        Qwen2ForCausalLM(config).save_pretrained(path)
        Checkpoint(base_dir).processor.tokenizer.save_pretrained(path)
    else:
        path = request.getfixturevalue(teacher)
    with pytest.raises(ValueError, match=part):
        load_teacher(path, "float32", Checkpoint(translated_dir).config, processor)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"teacher": "base"}, "teacher needs targets 'teacher'"),
        ({"targets": "teacher", "teacher_weight": 0.0}, "teacher_weight must be above 0"),
        ({"block_growth": [4, 1, 8]}, r"ascending sizes that divide the last.*got \[4, 1, 8\]"),
        ({"block_growth": [8]}, "ascending sizes"),
        ({"block_growth": [0, 8]}, "ascending sizes"),
        ({"block_growth": [3, 8]}, "divide the last"),
        ({"block_growth": [1, 8], "growth_steps": [0.5, 0.2]}, "the steps of each of the sizes"),
        ({"block_growth": [1, 8], "growth_steps": [100], "max_steps": 100}, "end before it does"),
        ({"block_growth": [1, 4, 8], "growth_steps": [0.5, 0.5]}, "end before it does"),
        ({"block_growth": [1, 8], "growth_steps": [-1]}, "growth_steps must be"),
        ({"growth_steps": [0.5]}, "belongs to block_growth"),
        ({"block_growth": [1, 8], "random_block_size": True}, "block_growth says the sizes"),
        ({"random_block_size": True, "noise_order": "reference"}, "noise_order reference does not fit"),
        ({"mask_slope": 1.5}, "it is at most 1"),
        ({"mask_slope": 0.5, "weighting": "mask_ratio"}, "mask_ratio needs levels"),
        ({"mask_slope": 0.5, "draft": True}, "draft_noise"),
        ({"own_states": True, "mask_slope": 0.5}, "the model says what is masked"),
        ({"own_states": True, "complementary": True}, "complementary does not fit"),
        ({"on_policy_from": -1}, "on_policy_from must be a number of at least 0"),
        ({"on_policy_from": 8, "max_steps": 8}, "on_policy_from=8 does not fit: the run has 8 steps"),
        ({"on_policy_from": 0, "draft": True}, "use `diffusionvl draft` for drafts"),
        ({"on_policy_from": 0, "mask_slope": 0.5}, "the model says what is masked"),
        ({"on_policy_from": 0, "complementary": True}, "complementary does not fit"),
        ({"on_policy_from": 0, "random_block_size": True}, "another block size does not fit"),
        ({"on_policy_from": 0, "targets": "teacher", "teacher_weight": 0.5}, "teacher_weight does not fit"),
        ({"on_policy_from": 0, "teacher_weight": 0.5}, "teacher_weight needs targets 'teacher'"),
        ({"on_policy_from": 0, "objective": "ar"}, "on_policy_from belongs to objective"),
        ({"certainty_weight": -1.0}, "certainty_weight must be a number of at least 0"),
        ({"objective": "ar", "own_states": True}, "own_states belongs to objective"),
        ({"objective": "ar", "targets": "teacher"}, "targets belongs to objective"),
        (
            {"objective": "ar", "targets": "teacher", "teacher": "base"},
            "teacher belongs to objective|targets belongs to",
        ),
        ({"objective": "ar", "weighting": "uniform"}, "weighting belongs to objective"),
        ({"objective": "ar", "noise_order": "sequence"}, "noise_order belongs to objective"),
        ({"on_policy_tokens": 8}, "on_policy_tokens does not fit: it belongs to on_policy_from"),
        ({"on_policy_from": 0, "own_states": True}, "own_states does not fit"),
        ({"draft": True, "complementary": True}, "complementary does not fit"),
        ({"draft": True, "noise_order": "sequence"}, "noise_order sequence does not fit"),
        ({"targets": "teacher", "teacher": ""}, "teacher is empty"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be at least 0 and below"),
    ],
)
def test_switches_that_do_not_fit(tmp_path, settings, part):
    with pytest.raises(ValueError, match=part):
        BlockDiffusionConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"block_growth": [1, 4]}, "block_growth ends at 4, but the checkpoint's block size is 8"),
        ({"targets": "teacher"}, "targets needs a checkpoint whose clean stream is causal"),
        ({"on_policy_from": 0}, "on_policy_from without a teacher needs a checkpoint whose clean stream is causal"),
    ],
)
def test_switches_that_do_not_fit_the_checkpoint(translated_dir, processor, pictures, tmp_path, settings, part):
    with pytest.raises(ValueError, match=part):
        trainer_of(translated_dir, processor, some_records(pictures), tmp_path, **settings)


@pytest.mark.parametrize("extra", [[], ["--dry_run"]])
@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (
            "--block_growth 1 8 --growth_steps 4 --num_train_epochs 1",
            "does not reach its last size: the run has 4 steps",
        ),
        ("--block_growth 1 2 8 --max_steps 1", "does not reach its last size: the run has 1 step;"),
        ("--on_policy_from 0.9 --max_steps 2", "on_policy_from=0.9 is not reached: the run has 2 steps"),
    ],
)
def test_a_schedule_that_does_not_end_within_the_run(recipe, causal_dir, tmp_path, capsys, settings, part, extra):
    argv = [recipe, "--model", causal_dir, "--output_dir", str(tmp_path / "out"), "--max_steps", "-1"]
    argv += [*settings.split(), *extra]
    assert main(argv) == 2
    assert part in capsys.readouterr().err
