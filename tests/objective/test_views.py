"""Several noisy copies of the responses behind one clean stream: each is what it would be in a row of its own."""

import pytest
import torch
from helpers import assert_same, collated, gradients, load_model, some_records

from diffusionvl import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.objective.corruption import Supervised, corrupt, row_generator
from diffusionvl.objective.loss import IGNORED, loss_counts, token_weights
from diffusionvl.objective.noise_schedule import weight

TAGS = ("block_ids", "stream_ids", "document_ids")


def loss_of(model, batch, noisy, normalizer):
    """The loss of a batch that has been corrupted."""
    indices = noisy.masked.flatten().nonzero()[:, 0]
    inputs = {name: batch[name] for name in (*TAGS, "position_ids", "media_twins", "pixel_values", "image_grid_thw")}
    logits = model(input_ids=noisy.x_t, token_indices=indices, **inputs).logits
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten()[indices], reduction="none")
    weights = token_weights(batch["labels"], normalizer, batch["document_ids"]) * weight(noisy.t)
    total = (losses * weights.flatten()[indices]).sum()
    return total / loss_counts(batch["labels"], normalizer, batch["document_ids"]).sum()


def noised(model, batch, complementary=False):
    """The corruption of a batch of one document in step 7."""
    supervised = Supervised(
        batch["labels"] != IGNORED, *(batch[name] for name in ("block_ids", "document_ids", "stream_ids"))
    )
    generators = [row_generator(0, 7, 0)]
    return corrupt(batch["input_ids"], supervised, model.config.mask_token_id, generators, complementary=complementary)


def only(view, batch, noisy):
    """A batch of one row without its other views."""
    kept = (batch["stream_ids"][0] == 0) | (batch["stream_ids"][0] == view)
    alone = {name: batch[name][:, kept] for name in (*TAGS, "labels")}
    alone["position_ids"] = batch["position_ids"][..., kept]
    alone["media_twins"] = torch.zeros(2, 0, dtype=torch.long)
    return batch | alone, type(noisy)(*(value[:, kept] for value in noisy))


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
@pytest.mark.parametrize(("views", "complementary"), [(3, False), (2, True)])
def test_views_of_one_row_are_rows_of_their_own_averaged(
    translated_dir, processor, pictures, normalizer, views, complementary
):
    model = load_model(translated_dir)
    rows = RowDataset(some_records(pictures), ConversationEncoder(processor), model.config, views=views)
    batch = rows.collate([rows[0]])  # three turns, two pictures
    noisy = noised(model, batch, complementary)
    loss = loss_of(model, batch, noisy, normalizer)
    loss.backward()
    together = gradients(model)
    model.zero_grad()
    alone = [loss_of(model, *only(view, batch, noisy), normalizer) for view in range(1, views + 1)]
    assert len({float(each.detach()) for each in alone}) == views
    mean = torch.stack(alone).mean()
    mean.backward()
    assert_same(loss, mean)
    for name, gradient in gradients(model).items():
        assert_same(together[name], gradient)


def test_the_first_view_is_the_only_one_of_a_row_without_more(translated_dir, processor, pictures):
    model = load_model(translated_dir)
    rows = RowDataset(some_records(pictures), ConversationEncoder(processor), model.config, views=2)
    batch = rows.collate([rows[0]])
    one = collated(model, processor, some_records(pictures)[:1])
    noisy, alone = noised(model, batch), noised(model, one)
    assert torch.equal(only(1, batch, noisy)[1].x_t, alone.x_t)


def test_views_pay_for_the_clean_stream_once(translated_dir, processor, pictures):
    model = load_model(translated_dir)
    encoder = ConversationEncoder(processor)
    one, three = (RowDataset(some_records(pictures), encoder, model.config, views=views)[1].row for views in (1, 3))
    noisy = int((one.stream_ids == 1).sum())
    assert len(three) == len(one) + 2 * noisy
    assert one.media.keys() == three.media.keys()


def test_the_trainer_takes_views(translated_dir, processor, pictures, tmp_path):
    losses = []
    for views, complementary in ((1, False), (2, False), (2, True)):
        model = load_model(translated_dir)
        rows = RowDataset(some_records(pictures), ConversationEncoder(processor), model.config, views=views)
        args = BlockDiffusionConfig(
            output_dir=str(tmp_path),
            complementary=complementary,
            max_steps=1,
            per_device_train_batch_size=3,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = BlockDiffusionTrainer(model, args, rows, processing_class=processor)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        assert trainer.state.log_history[0]["mean_t"] == pytest.approx(0.5, abs=1e-4 if complementary else 0.3)
    assert len(set(losses)) == 3
