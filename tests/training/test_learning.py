"""A run learns: a few rows by heart; batches that are empty change nothing, and one that diverges stops."""

import pytest
import torch
from helpers import QUESTION, conversation, gradients, load_model, prompts
from PIL import Image
from trainers import batch_of, logged, weights

from diffusionvl import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset, load_processor
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.objective import corruption
from diffusionvl.objective.noise_schedule import T_MIN


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
