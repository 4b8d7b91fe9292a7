"""What a run logs: the evaluation loss, counts of tokens and samples, accuracy, and the progress bar."""

from types import SimpleNamespace

import pytest
import torch
from helpers import QUESTION, conversation
from trainers import assert_identical, batch_of, logged, weights

from diffusionvl.data.record import DataError
from diffusionvl.modeling.families import media_types
from diffusionvl.objective.loss import IGNORED
from diffusionvl.training import metrics as metrics_module


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


def test_the_progress_bar_shows_the_last_log(build, records, capsys):
    trainer = build(records[:2], eval_records=records[2:3], eval_strategy="steps", eval_steps=1, disable_tqdm=False)
    trainer.train()
    err = capsys.readouterr().err
    last = err.strip().split("\r")[-1]
    assert all(f"{name}=" in last for name in ("loss", "acc", "t", "tok/s", "eval")), last
    assert "{'loss'" not in err
