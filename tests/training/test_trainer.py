"""The trainer: its losses are what a slow loop says, and a run does not depend on how it is cut."""

import pytest
import torch
from helpers import assert_same, gradients
from trainers import assert_identical, batch_of, logged, weights
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusionvl import BlockDiffusionConfig, BlockDiffusionTrainer
from diffusionvl.checkpoints.loading import load_model as load_any_model
from diffusionvl.modeling.families import media_types
from diffusionvl.objective import corruption
from diffusionvl.objective.loss import IGNORED
from diffusionvl.training.parameters import freeze_others
from diffusionvl.training.parts import Parts


@pytest.mark.parametrize(
    ("normalizer", "weighting", "noise_order"),
    [
        ("per_sample", "inverse_t", "permuted"),
        ("tokens", "inverse_t", "permuted"),
        ("per_sample", "mask_ratio", "permuted"),
        ("tokens", "mask_ratio", "sequence"),
        ("per_sample", "uniform", "permuted"),
    ],
)
def test_the_diffusion_loss_is_a_loop_over_tokens(build, records, normalizer, weighting, noise_order):
    trainer = build(records[:4], normalizer=normalizer, weighting=weighting, noise_order=noise_order)
    trainer.model.train()
    sums, supervised = [], []
    for index in range(4):
        item = trainer.train_dataset[index]
        batch = trainer.train_dataset.collate([item])
        carries = batch["labels"] != IGNORED
        noisy = corruption.corrupt(
            batch["input_ids"],
            corruption.Supervised.of(carries, batch["block_ids"]),
            trainer.model.config.mask_token_id,
            [corruption.row_generator(42, 0, index)],
            noise_order,
        )
        names = ("block_ids", "stream_ids", "document_ids", "position_ids", "media_twins")
        inputs = {name: batch[name] for name in (*names, "pixel_values", "image_grid_thw")}
        with torch.no_grad():
            logits = trainer.model(input_ids=noisy.x_t, **inputs).logits[0]
        terms = []
        for place, label in enumerate(item.row.labels.tolist()):
            if noisy.masked[0, place]:
                surprise = logits[place].exp().sum().log() - logits[place, label]
                same = carries & (noisy.t == noisy.t[0, place])  # levels tell blocks, or the row, apart
                by_noise = {
                    "inverse_t": 1 / noisy.t[0, place],
                    "mask_ratio": (same.sum() + 1) / (same & noisy.masked).sum(),
                    "uniform": 1,
                }
                terms.append(surprise * by_noise[weighting])
        sums.append(sum(terms))
        supervised.append(int(carries.sum()))
    if normalizer == "per_sample":
        expected = sum(own / count for own, count in zip(sums, supervised, strict=True)) / 4
    else:
        expected = sum(sums) / sum(supervised)
    assert trainer.args.seed == 42
    assert_same(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
def test_the_ar_loss_is_transformers_own(build, records, normalizer):
    trainer = build(records[:4], "ar", normalizer=normalizer)
    losses, counts = [], []
    for index in range(4):
        row = trainer.train_dataset[index].row
        ids, labels = row.input_ids[None], row.labels[None]
        types = media_types(trainer.model.config, ids)
        with torch.no_grad():
            losses.append(trainer.model(input_ids=ids, labels=labels, mm_token_type_ids=types, **row.media).loss)
        counts.append(int((labels[:, 1:] != IGNORED).sum()))
    weight = torch.tensor(counts if normalizer == "tokens" else [1] * 4)
    expected = (torch.stack(losses) * weight).sum() / weight.sum()
    assert_same(trainer.compute_loss(trainer.model, batch_of(trainer)), expected)


@pytest.mark.parametrize("kind", ["text only", "images only", "mixed"])
def test_the_loss_of_a_batch_is_the_mean_of_its_rows(build, records, kind):
    images = [record for record in records if record.images]
    texts = [record for record in records if not record.images]
    chosen = {"text only": texts, "images only": images[:3], "mixed": [*texts, *images[:2]]}[kind]
    trainer = build(chosen)
    trainer.model.train()
    items = [trainer.train_dataset[index] for index in range(len(chosen))]
    alone = [trainer.compute_loss(trainer.model, trainer.train_dataset.collate([item])) for item in items]
    loss = trainer.compute_loss(trainer.model, trainer.train_dataset.collate(items))
    assert_same(loss, torch.stack(alone).mean())
    loss.backward()
    part_of = Parts(trainer.model).of
    moved = {part_of(name) for name, gradient in gradients(trainer.model).items() if gradient.any()}
    assert ("vision_tower" in moved) == (kind != "text only")
    assert {name for name, _ in trainer.model.named_parameters()} == gradients(trainer.model).keys()


@pytest.mark.parametrize(
    ("objective", "normalizer"), [("block_diffusion", "per_sample"), ("block_diffusion", "tokens"), ("ar", "tokens")]
)
def test_accumulated_batches_are_one_batch(build, records, objective, normalizer):
    runs = []
    for size in (8, 1):
        trainer = build(
            records,
            objective,
            normalizer=normalizer,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            optim="sgd",  # Adam's first steps have the sign of a gradient, however small it is
            learning_rate=0.05,
        )
        before = weights(trainer)
        trainer.train()
        runs.append((weights(trainer), logged(trainer, "loss")))
    for name, value in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][name], value, rtol=0, atol=1e-5)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)
    assert any((value - before[name]).abs().max() > 1e-3 for name, value in runs[0][0].items())


def test_a_seed_gives_one_run(build, records):
    runs = []
    for seed in (1, 1, 2):
        trainer = build(records, seed=seed, max_steps=2)
        trainer.train()
        runs.append((weights(trainer), logged(trainer, "loss")))
    assert_identical(runs[1][0], runs[0][0])
    assert runs[0][1] == runs[1][1] != runs[2][1]


@pytest.mark.parametrize("objective", ["block_diffusion", "ar"])
def test_a_resumed_run_is_the_uninterrupted_one(build, records, objective, tmp_path):
    """The checkpoint stands in the middle of an epoch of 4 steps, and the run goes on into the next one."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = build(records, objective, **settings)
    whole.train()
    resumed = build(records, objective, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_identical(weights(resumed), weights(whole))
    assert logged(resumed, "loss") == logged(whole, "loss")


def test_a_run_with_rows_grouped_by_length_is_resumed(build, records, tmp_path):
    settings = {
        "train_sampling_strategy": "group_by_length",
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "constant",
    }
    whole = build(records, **settings)
    whole.train()
    resumed = build(records, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_identical(weights(resumed), weights(whole))


def test_the_best_model_comes_back_at_the_end(build, records):
    trainer = build(
        records[:2],
        eval_records=records[2:4],
        load_best_model_at_end=True,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=1,
        eval_steps=1,
        learning_rate=0.5,  # so that every step makes it worse
        lr_scheduler_type="constant",
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best = load_any_model(trainer.state.best_model_checkpoint, torch.float32)
    assert_identical(weights(trainer), dict(best.named_parameters()))


@pytest.mark.parametrize("objective", ["block_diffusion", "ar"])
def test_parameter_groups(build, records, objective):
    trainer = build(records, objective, vision_learning_rate=1e-5, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {}
    for group in trainer.create_optimizer().param_groups:
        found |= {names[id(parameter)]: (group["lr"], group["weight_decay"]) for parameter in group["params"]}
    assert found.keys() == set(names.values())
    prefix = "base." if objective == "block_diffusion" else ""
    block, layer = f"{prefix}model.visual.blocks.0", f"{prefix}model.language_model.layers.0"
    assert found[f"{block}.attn.qkv.weight"] == (1e-5, 0.1)
    assert found[f"{block}.attn.qkv.bias"] == found[f"{block}.norm1.weight"] == (1e-5, 0.0)
    assert found[f"{prefix}model.visual.merger.mlp.0.weight"] == (1e-3, 0.1)
    assert found[f"{prefix}model.visual.merger.ln_q.weight"] == (1e-3, 0.0)
    assert found[f"{layer}.self_attn.q_proj.weight"] == (1e-3, 0.1)
    assert found[f"{layer}.input_layernorm.weight"] == found[f"{layer}.self_attn.q_proj.bias"] == (1e-3, 0.0)


def test_the_vision_learning_rate_moves_the_vision_tower_alone(build, records):
    trainer = build(records, vision_learning_rate=0.0, max_steps=1)
    before = weights(trainer)
    trainer.train()
    still = {name for name, value in weights(trainer).items() if torch.equal(value, before[name])}
    assert {name for name in before if Parts(trainer.model).of(name) == "vision_tower"} == still


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"vision_learning_rate": 1e-4}])
@pytest.mark.parametrize("modules", [["projector"], ["vision_tower"], ["language_model", "projector"]])
def test_what_is_not_trained_stays_and_costs_nothing(build, records, modules, settings):
    trainer = build(records, max_steps=1, train_modules=modules, **settings)
    before = weights(trainer)
    trainer.train()
    part_of = Parts(trainer.model).of
    chosen = {name for name in before if part_of(name) in modules}
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert {part_of(name) for name in moved} == set(modules)
    assert moved <= chosen
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(p) for name, p in trainer.model.named_parameters() if name in chosen}
    assert all(p.grad is None for name, p in trainer.model.named_parameters() if name not in chosen)


@pytest.mark.parametrize(
    ("modules", "reason"),
    [([], "give one or more"), (["projector"], r"\['projector'\].*the model's parts, \['language_model'\]")],
)
def test_nothing_to_train_is_an_error(modules, reason):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=8, num_key_value_heads=1, **sizes))
    with pytest.raises(ValueError, match=reason):
        freeze_others(model, modules)


@pytest.mark.parametrize(
    ("settings", "tolerance"), [({"gradient_checkpointing": True}, 1e-5), ({"bf16": True}, 0.03), ({}, 1e-6)]
)
def test_savings_of_memory_keep_the_loss(build, records, settings, tolerance):
    losses = []
    for chosen in ({}, settings):
        trainer = build(records, max_steps=2, **chosen)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_training_writes_no_cache(build, records):
    trainer = build(records[:1])
    seen = []
    trainer.model.base.register_forward_hook(lambda module, args, output: seen.append(output.past_key_values))
    trainer.train()
    assert seen == [None] * 3


@pytest.mark.parametrize(("objective", "folder"), [("ar", "translated_dir"), ("block_diffusion", "base_dir")])
def test_an_objective_that_does_not_fit_the_model(objective, folder, request, tmp_path):
    model = load_any_model(request.getfixturevalue(folder))
    args = BlockDiffusionConfig(output_dir=str(tmp_path), objective=objective, use_cpu=True)
    with pytest.raises(ValueError, match=f"objective='{objective}' does not fit a '{model.config.model_type}' model"):
        BlockDiffusionTrainer(model, args)
