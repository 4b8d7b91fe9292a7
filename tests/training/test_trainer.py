"""The trainer: its losses are what a slow loop says, and a run does not depend on how it is cut."""

from types import SimpleNamespace

import pytest
import torch
from helpers import QUESTION, assert_same, conversation, gradients, load_model, prompts, some_records
from PIL import Image
from trainers import batch_of
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusionvl import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset, load_processor
from diffusionvl.checkpoints.loading import load_model as load_any_model
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.record import DataError
from diffusionvl.modeling.families import media_types
from diffusionvl.objective import corruption
from diffusionvl.objective.loss import IGNORED
from diffusionvl.objective.noise_schedule import T_MIN
from diffusionvl.training import metrics as metrics_module
from diffusionvl.training.parameters import freeze_others
from diffusionvl.training.parts import Parts


@pytest.fixture(scope="module")
def records(pictures):
    """Eight: of several turns, with several pictures, one and none."""
    more = [conversation((QUESTION, answer, pictures[n % 3])) for n, answer in enumerate(("red", "teal", "blue"))]
    return [
        *some_records(pictures),
        *more,
        conversation(("is it?", "no")),
        conversation((QUESTION, "yes", pictures[2])),
    ]


@pytest.fixture
def build(base_dir, translated_dir, tmp_path):
    """A function that makes a trainer; `eval_records`, `max_length` and settings as keywords."""

    def build(records, objective="block_diffusion", eval_records=None, max_length=None, views=1, **settings):
        folder = translated_dir if objective == "block_diffusion" else base_dir
        model, processor = load_any_model(folder, torch.float32), load_processor(folder)
        encoder = ConversationEncoder(processor, max_length=max_length)
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return BlockDiffusionTrainer(
            model,
            BlockDiffusionConfig(**{**defaults, **settings}, objective=objective),
            train_dataset=RowDataset(records, encoder, model.config, views=views),
            eval_dataset=RowDataset(eval_records, encoder, model.config) if eval_records else None,
            processing_class=processor,
        )

    return build


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


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


def test_evaluation_has_one_noise_and_leaves_training_alone(build, records):
    settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-2}
    alone = build(records[:6], **settings)
    alone.train()
    watched = build(records[:6], eval_records=records[6:], eval_strategy="steps", eval_steps=1, **settings)
    losses = [watched.evaluate()["eval_loss"]]
    watched.state.global_step = 100
    losses.append(watched.evaluate()["eval_loss"])
    watched.args.per_device_eval_batch_size = 1
    losses.append(watched.evaluate()["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    watched.train()
    during = logged(watched, "eval_loss")[-3:]
    assert len(set(during)) == 3
    assert_identical(weights(watched), weights(alone))
    for name in ("loss", "masked_accuracy", "mean_t"):
        assert logged(watched, name) == logged(alone, name)


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
@pytest.mark.parametrize("objective", ["block_diffusion", "ar"])
def test_the_evaluation_loss_does_not_depend_on_the_batch_size(build, records, objective, normalizer):
    """Rows of one and of three answers weigh the same, or as their tokens do, in whichever batch they stand."""
    trainer = build(records, objective, eval_records=records, normalizer=normalizer)
    trainer.model.eval()
    whole = trainer.compute_loss(trainer.model, batch_of(trainer)).item()
    for size in (8, 3, 1):
        trainer.args.per_device_eval_batch_size = size
        assert trainer.evaluate()["eval_loss"] == pytest.approx(whole, rel=1e-5)
    packed = [[trainer.eval_dataset[index] for index in pack] for pack in ([0, 5, 2], [7], [1, 3, 4, 6])]
    trainer._evaluation.clear()
    with torch.no_grad():
        for pack in packed:
            trainer.compute_loss(trainer.model, trainer.eval_dataset.collate([pack]))
    assert trainer._evaluation.loss(1) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("objective", ["block_diffusion", "ar"])
def test_the_log_counts_tokens_without_padding(build, records, objective, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(metrics_module, "time", clock)
    trainer = build(records, objective)
    trainer.model.train()
    batch = batch_of(trainer)
    clock.now = 2.0
    loss = trainer.compute_loss(trainer.model, batch)
    logs = {"loss": loss.item()}
    trainer.log(logs)
    tokens = sum(len(trainer.train_dataset[index][0]) for index in range(len(records)))
    assert tokens < batch["input_ids"].numel()
    assert logs["tokens_per_second"] == tokens / 2
    accuracy = "masked_accuracy" if objective == "block_diffusion" else "accuracy"
    assert {accuracy, "tokens_per_second"} <= logs.keys()
    assert ("mean_t" in logs) == (objective == "block_diffusion")
    assert not {"truncated", "dropped"} & logs.keys()


def test_accuracy_is_the_share_of_right_tokens(build, records):
    trainer = build(records[:4], "ar")
    right = total = 0
    for index in range(4):
        row = trainer.train_dataset[index].row
        types = media_types(trainer.model.config, row.input_ids[None])
        with torch.no_grad():
            logits = trainer.model(input_ids=row.input_ids[None], mm_token_type_ids=types, **row.media).logits[0]
        chosen = row.labels[1:] != IGNORED
        right += int((logits[:-1].argmax(-1) == row.labels[1:])[chosen].sum())
        total += int(chosen.sum())
    trainer.model.train()
    batch = batch_of(trainer)
    logs = {"loss": 0.0}
    trainer.compute_loss(trainer.model, batch)
    trainer.log(logs)
    assert logs["accuracy"] == pytest.approx(right / total)


def test_truncated_and_dropped_samples_are_counted(build, pictures):
    long = "There is no circle and no triangle in it, and nothing else is drawn in the image."
    records = [
        conversation((QUESTION, "no")),
        conversation((QUESTION, long)),
        conversation((QUESTION, "no", *pictures)),
        conversation((QUESTION, "yes")),
    ]
    trainer = build(records, max_length=24, per_device_train_batch_size=4, max_steps=3, logging_steps=2)
    trainer.train()
    first, second, last = trainer.state.log_history
    assert (first["truncated"], first["dropped"]) == (4, 2)  # a dropped sample was truncated, too
    assert (second["truncated"], second["dropped"], second["step"]) == (2, 1, 3)  # the last step is logged, too
    assert (last["truncated"], last["dropped"]) == (6, 3)  # of all three steps


def test_a_run_that_truncation_empties_is_an_error(build, records):
    with pytest.raises(DataError, match=r"left no supervised token in the last .* samples.*; raise max_length"):
        build(records, max_length=4).train()


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
def test_an_emptied_batch_changes_nothing_in_an_accumulated_one(build, pictures, normalizer):
    """At batch size 1 a dropped sample is a batch of its own."""
    kept = [conversation((QUESTION, "no")), conversation((QUESTION, "yes"))]
    dropped = conversation((QUESTION, "no", *pictures))
    settings = {"max_length": 24, "per_device_train_batch_size": 1, "max_steps": 1, "normalizer": normalizer}
    alone, among = (
        build(records, gradient_accumulation_steps=len(records), **settings) for records in (kept, [*kept, dropped])
    )
    for trainer in (alone, among):
        trainer.train()
    assert among.state.log_history[0]["dropped"] == 1
    assert among.state.log_history[0]["loss"] == pytest.approx(alone.state.log_history[0]["loss"], rel=1e-6)


def test_a_batch_without_masked_tokens_has_a_loss_of_zero_with_a_graph(build, records, monkeypatch):
    monkeypatch.setattr(corruption, "stratified_t", lambda blocks, *_: torch.full((blocks,), T_MIN))
    trainer = build(records[3:5])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    assert loss == 0
    loss.backward()
    found = gradients(trainer.model)
    assert found
    assert not any(gradient.any() for gradient in found.values())
    trainer.train()
    assert logged(trainer, "loss") == [0, 0, 0]
    assert logged(trainer, "masked_accuracy") == [0, 0, 0]
    assert all(value.isfinite().all() for value in weights(trainer).values())


@pytest.mark.parametrize(("objective", "folder"), [("ar", "translated_dir"), ("block_diffusion", "base_dir")])
def test_an_objective_that_does_not_fit_the_model(objective, folder, request, tmp_path):
    model = load_any_model(request.getfixturevalue(folder))
    args = BlockDiffusionConfig(output_dir=str(tmp_path), objective=objective, use_cpu=True)
    with pytest.raises(ValueError, match=f"objective='{objective}' does not fit a '{model.config.model_type}' model"):
        BlockDiffusionTrainer(model, args)


def test_the_progress_bar_shows_the_last_log(build, records, capsys):
    trainer = build(records[:2], eval_records=records[2:3], eval_strategy="steps", eval_steps=1, disable_tqdm=False)
    trainer.train()
    err = capsys.readouterr().err
    last = err.strip().split("\r")[-1]
    assert all(f"{name}=" in last for name in ("loss", "acc", "t", "tok/s", "eval")), last
    assert "{'loss'" not in err


@pytest.fixture(scope="module")
def overfitted(translated_dir, tmp_path_factory):
    """The trainer of a model that has learned three answers by heart, its processor, and the turns it learned.

    Two questions differ by their pictures alone, and one answer is longer than a block.
    """
    folder = tmp_path_factory.mktemp("colours")
    for colour in ("red", "teal"):
        Image.new("RGB", (64, 32), colour).save(folder / f"{colour}.png")
    taught = [
        (QUESTION, "It is red and there is no circle in it.", str(folder / "red.png")),
        (QUESTION, "teal", str(folder / "teal.png")),
        ("is there a circle?", "no"),
    ]
    model, processor = load_model(translated_dir), load_processor(translated_dir)
    rows = RowDataset([conversation(turn) for turn in taught], ConversationEncoder(processor), model.config)
    args = BlockDiffusionConfig(
        output_dir=str(tmp_path_factory.mktemp("overfitted")),
        max_steps=120,
        per_device_train_batch_size=3,
        learning_rate=3e-3,
        warmup_steps=5,
        logging_steps=20,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = BlockDiffusionTrainer(model, args, train_dataset=rows, processing_class=processor)
    trainer.train()
    return trainer, processor, taught


def test_a_few_rows_are_learned_by_heart(overfitted):
    trainer, processor, taught = overfitted
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.1 * losses[0]
    assert logged(trainer, "masked_accuracy")[-1] > 0.95
    inputs = prompts(processor, *[(question, *images) for question, _, *images in taught])
    model = trainer.model.eval()
    for settings in ({}, {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.9}):
        sequences = model.generate(**inputs, max_new_tokens=32, **settings)
        answers = processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [answer.strip() for answer in answers] == [answer for _, answer, *_ in taught]


def test_mean_t_is_a_half(overfitted):
    found = logged(overfitted[0], "mean_t")
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_that_diverges_stops_before_anything_is_saved(build, records, tmp_path, where):
    """It names the step and its rows, and leaves the weights as they were."""
    trainer = build(records, save_strategy="steps", save_steps=1)
    head = trainer.model.get_output_embeddings()

    def break_it(module, args, output):
        if trainer.state.global_step == 1:
            return output * torch.nan if where == "loss" else _NanGradient.apply(output)
        return output

    head.register_forward_hook(break_it)
    with pytest.raises(ValueError, match=r"step 2: the loss is .* Its rows: test, test") as error:
        trainer.train()
    assert ("loss is nan" in str(error.value)) == (where == "loss")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


class _NanGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, value):
        return value

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan
