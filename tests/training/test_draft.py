"""Drafts: what they are trained on, and an adapter that leaves the clean stream as it is to the last bit."""

import json
import random
import shutil

import pytest
import torch
import yaml
from helpers import assert_same, conversation, some_records
from safetensors import safe_open
from trainers import batch_of, trainer_of

from diffusionvl.checkpoints.checkpoint import Checkpoint, save_checkpoint
from diffusionvl.data.streams import draft_blocks
from diffusionvl.modeling.draft_adapter import weights_fingerprint
from diffusionvl.modeling.errors import UserError
from diffusionvl.objective.corruption import Supervised
from diffusionvl.objective.distillation import divergence, draft_weights
from diffusionvl.objective.loss import IGNORED
from diffusionvl.train import main
from diffusionvl.training.draft import add_draft
from diffusionvl.training.losses import clean_targets
from diffusionvl.translation.translate import translate


@pytest.fixture(scope="module")
def causal_dir(base_dir, tmp_path_factory):
    """The folder of a translation whose clean stream is causal, D = 4."""
    folder = str(tmp_path_factory.mktemp("causal"))
    save_checkpoint(*translate(base_dir, block_size=4, clean_attention="causal"), folder)
    return folder


def test_blocks_begin_at_random_and_hold_every_token_of_a_response():
    supervised = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1]).bool()
    seen = set()
    for seed in range(200):
        blocks = draft_blocks(supervised, 4, random.Random(seed))
        assert (blocks.diff() >= 0).all()
        sizes = [int((blocks == block).sum()) for block in blocks[3:10].unique()]
        assert 1 <= sizes[0] <= 4
        assert all(size == 4 for size in sizes[1:-1])
        assert sum(sizes) == 7  # no block reaches out of the response
        seen.add(sizes[0])
    assert seen == {1, 2, 3, 4}


def test_an_epoch_cuts_anew_and_the_same_epoch_does_not(causal_dir, processor, pictures, tmp_path):
    rows = trainer_of(causal_dir, processor, some_records(pictures), tmp_path, draft=True).train_dataset
    found = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        found.append([rows[index].row.block_ids.tolist() for index in range(3)])
    assert found[0] == found[2] != found[1]
    for index in range(3):
        assert len(rows[index].row) <= rows.measure(index)[0]


def test_each_view_is_cut_anew_and_is_what_it_would_be_alone(causal_dir, processor, pictures, tmp_path):
    """A view has the predictions of a row of its own: views do not see one another."""
    records = some_records(pictures)
    rows = trainer_of(causal_dir, processor, records, tmp_path, views=3, draft=True).train_dataset
    model = Checkpoint(causal_dir).model(torch.float32).eval()
    for index in range(3):
        row = rows[index].row
        assert len(row) <= rows.measure(index)[0]
        clean = row.stream_ids == 0
        views = [row.stream_ids == view for view in (1, 2, 3)]
        assert len({tuple(row.block_ids[view].tolist()) for view in views}) > 1
        tags = (row.input_ids.masked_fill(~clean, model.config.mask_token_id), row.block_ids, row.stream_ids)

        def logits(kept, tags=tags, row=row):
            ids, blocks, streams = (values[kept][None] for values in tags)
            positions = row.position_ids[:, None, kept]
            with torch.no_grad():
                return model(ids, block_ids=blocks, stream_ids=streams, position_ids=positions, **row.media).logits[0]

        together = logits(torch.ones_like(clean))
        for view in views:
            assert_same(together[view], logits(clean | view)[int(clean.sum()) :], 1e-4)


def test_a_noisy_block_of_a_causal_row_has_the_number_of_its_first_token(causal_dir, processor, pictures, tmp_path):
    rows = trainer_of(causal_dir, processor, some_records(pictures), tmp_path, draft=True).train_dataset
    for index in range(3):
        row = rows[index].row
        clean = int((row.stream_ids == 0).sum())
        assert row.block_ids[:clean].tolist() == list(range(clean))
        numbers, twins = row.block_ids[clean:], row.twins[clean:]
        for number in numbers.unique().tolist():
            assert number == int(twins[numbers == number].min())


def test_places_and_their_weights():
    block = torch.tensor([[0, 1, 2, 3, 2, 2, 2, 5, 5, 2]])
    stream = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 2]])
    places = Supervised.of(stream > 0, block, stream=stream).place
    assert places[0, 4:].tolist() == [0, 1, 2, 0, 1, 0]
    assert draft_weights(places, None).tolist() == [[1.0] * 10]
    weights = draft_weights(torch.arange(5), 2.0)
    assert_same(weights, torch.tensor([0, 0, -0.5, -1, -1.5]).exp())


@pytest.mark.parametrize("top_k", [None, 2, 7, 100])
def test_the_divergence_is_a_sum_over_the_vocabulary(top_k):
    student, teacher = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    expected = []
    for mine, own in zip(student.softmax(-1), teacher.softmax(-1), strict=True):
        kept = own.sort(descending=True).indices[:top_k]
        p = own[kept] / own[kept].sum()
        expected.append(sum(p[i] * (p[i].log() - mine[kept[i]].log()) for i in range(len(kept))))
    assert_same(divergence(student, teacher, top_k).double(), torch.stack(expected), 1e-5)
    assert divergence(student, student).abs().max() < 1e-6


@pytest.mark.parametrize("normalizer", ["per_sample", "tokens"])
@pytest.mark.parametrize("views", [1, 2])
def test_the_clean_loss_is_the_bases_own(causal_dir, processor, pictures, tmp_path, normalizer, views):
    """Of the stock AR model, over the same conversations, at the weight that is asked for."""
    records = some_records(pictures)
    found = {}
    for weight in (0.0, 0.5):
        trainer = trainer_of(causal_dir, processor, records, tmp_path, views, ar_weight=weight, normalizer=normalizer)
        trainer.model.eval()
        with torch.no_grad():
            found[weight] = trainer.compute_loss(trainer.model, batch_of(trainer))
    batch = batch_of(trainer)
    assert len(clean_targets(batch)) == sum(
        int((trainer.train_dataset.encoder.encode(record).labels != IGNORED).sum()) for record in records
    )
    base, losses, counts = trainer.model.base, [], []
    for index, record in enumerate(records):
        encoded = trainer.train_dataset.encoder.encode(record)
        row = trainer.train_dataset[index].row
        inputs = {"input_ids": encoded.input_ids[None], **row.media}
        types = {"mm_token_type_ids": (encoded.input_ids[None] == base.config.image_token_id).long()}
        with torch.no_grad():
            losses.append(base(**inputs, **types, labels=encoded.labels[None]).loss)
        counts.append(int((row.labels != IGNORED).sum()))
    shares = torch.tensor(counts if normalizer == "tokens" else [1] * 3)
    expected = (torch.stack(losses) * shares).sum() / shares.sum()
    assert_same(found[0.5] - found[0.0], 0.5 * expected, 1e-4)


def test_a_teacher_is_the_clean_stream_before_the_masked_token(causal_dir, processor, pictures, tmp_path):
    records = some_records(pictures)
    settings = {"draft": True, "targets": "teacher", "draft_decay": 3.0, "normalizer": "tokens"}
    trainer = trainer_of(causal_dir, processor, records, tmp_path, **settings)
    trainer.model.eval()
    batch = batch_of(trainer)
    mask_id = trainer.model.config.mask_token_id
    noisy = batch["labels"] != IGNORED
    names = ("block_ids", "stream_ids", "document_ids", "position_ids", "media_twins", "pixel_values", "image_grid_thw")
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
        inputs = {name: batch[name] for name in names}
        logits = trainer.model(input_ids=batch["input_ids"].masked_fill(noisy, mask_id), **inputs).logits
    flat, total = logits.flatten(0, 1).log_softmax(-1), 0.0
    starts = {}
    for place in noisy.flatten().nonzero()[:, 0].tolist():
        key = tuple(int(batch[name].flatten()[place]) for name in ("document_ids", "block_ids"))
        k = place - starts.setdefault(key, place)
        twin = int(batch["twins"].flatten()[place])
        if batch["position_ids"][0].flatten()[place] == batch["position_ids"][0].flatten()[twin]:
            own = flat[twin - 1]
            term = (own.exp() * (own - flat[place])).sum()
        else:  # the fill has no teacher
            term = -flat[place, batch["labels"].flatten()[place]]
        total += term * torch.exp(torch.tensor(-max(k - 1, 0) / 3.0))
    assert_same(loss, total / noisy.sum(), 1e-4)


@pytest.fixture(scope="module")
def drafted(causal_dir, tmp_path_factory):
    """The folder of a draft-only adapter that was trained for six steps, by its recipe."""
    folder = tmp_path_factory.mktemp("drafted")
    return train(folder, causal_dir, folder / "out")


def train(folder, model, out, *argv, code=0, **changes):
    records = [{"messages": conversation((f"is it {n}?", f"no, it is {n} of them")).messages} for n in range(8)]
    for record in records:
        for turn in record["messages"]:
            turn["content"] = turn["content"][0]["text"]
    (folder / "records.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    settings = {
        "model": model,
        "train_records": [str(folder / "records.jsonl")],
        "output_dir": str(out),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "save_steps": 3,
        "lora_r": 4,
        "lora_on": "noisy",
        "draft": True,
        "resume_from_checkpoint": "last",
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main([str(folder / "recipe.yaml"), *argv]) == code
    return out


def test_a_draft_only_adapter_leaves_the_clean_stream_as_it_is_to_the_last_bit(causal_dir, drafted, processor):
    before, after = Checkpoint(causal_dir).model(), Checkpoint(str(drafted)).model()
    for (name, mine), (_, own) in zip(before.base.state_dict().items(), after.base.state_dict().items(), strict=True):
        assert torch.equal(mine, own), name
    ids = processor.tokenizer("what is the color of the shape?", return_tensors="pt")["input_ids"]
    noisy = torch.full((1, 4), before.config.mask_token_id)
    row = {
        "input_ids": torch.cat([ids, noisy], 1),
        "block_ids": torch.cat([torch.arange(ids.shape[1])[None], torch.full((1, 4), ids.shape[1])], 1),
        "stream_ids": torch.cat([torch.zeros_like(ids), torch.ones_like(noisy)], 1),
        "position_ids": torch.arange(ids.shape[1] + 4).expand(3, 1, -1),
    }
    with torch.no_grad():
        clean, drafts = (model(**row).logits.split([ids.shape[1], 4], 1) for model in (before, after))
    assert torch.equal(clean[0], drafts[0])
    assert not torch.equal(clean[1], drafts[1])
    assert clean[1].isfinite().all()


def test_an_adapter_gets_no_other_one(drafted):
    with pytest.raises(ValueError, match="has a draft-only adapter, which is trained on without lora_r and lora_on"):
        add_draft(Checkpoint(str(drafted)).model(), str(drafted), 4)


def test_the_adapter_alone_is_saved_and_loads_by_its_base(causal_dir, drafted):
    with safe_open(drafted / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names
    assert all(name.startswith("draft.") for name in names)
    settings = Checkpoint(str(drafted)).config.draft_adapter
    assert settings["base"] == causal_dir
    assert settings["fingerprint"] == weights_fingerprint(causal_dir)
    model = Checkpoint(str(drafted)).model(torch.bfloat16)
    assert model.draft.mask_embedding.dtype == model.base.dtype == torch.bfloat16


def test_an_adapter_of_some_layers_is_trained_saved_and_loaded(causal_dir, tmp_path):
    names = ["o_proj", "down_proj", "o_proj"]
    model = Checkpoint(str(train(tmp_path, causal_dir, tmp_path / "out", lora_target_modules=names))).model()
    assert model.config.draft_adapter["layers"] == ["down_proj", "o_proj"]
    assert {name.rpartition("/")[2] for name in model.draft.layers} == {*names}
    assert all(change.up.any() for change in model.draft.layers.values())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rank", None, "draft_adapter needs rank, alpha, base, fingerprint; rank is missing"),
        ("base", None, "draft_adapter needs rank, alpha, base, fingerprint; base is missing"),
        ("rank", 2, "its weights are .* tensors of another adapter than the one that draft_adapter of config.json"),
        ("layers", ["o_proj"], "which has 7; restore rank and layers there"),
    ],
)
def test_settings_of_another_adapter_than_the_weights_are_refused(drafted, tmp_path, key, value, message):
    changed = shutil.copytree(drafted, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    config["draft_adapter"][key] = value
    if value is None:
        del config["draft_adapter"][key]
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        Checkpoint(str(changed)).model()


def test_a_killed_draft_training_goes_on_bit_for_bit(causal_dir, drafted, tmp_path):
    train(tmp_path, causal_dir, tmp_path / "out")
    for name in ("checkpoint-6", "trainer_state.json", "model.safetensors"):
        path = tmp_path / "out" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(tmp_path, causal_dir, tmp_path / "out")
    expected = Checkpoint(str(drafted)).model().draft.state_dict()
    for name, value in Checkpoint(str(tmp_path / "out")).model().draft.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_gradient_checkpointing_changes_nothing(causal_dir, drafted, tmp_path):
    train(tmp_path, causal_dir, tmp_path / "out", gradient_checkpointing=True)
    expected = Checkpoint(str(drafted)).model().draft.state_dict()
    for name, value in Checkpoint(str(tmp_path / "out")).model().draft.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_base_with_other_weights_is_refused(causal_dir, tmp_path):
    model, processor = Checkpoint(causal_dir).model(), Checkpoint(causal_dir).processor
    save_checkpoint(model, processor, str(tmp_path / "base"))
    out = train(tmp_path, str(tmp_path / "base"), tmp_path / "out", max_steps=1)
    with torch.no_grad():
        model.base.get_decoder().layers[0].mlp.down_proj.weight.mul_(1.01)
    save_checkpoint(model, processor, str(tmp_path / "base"))
    with pytest.raises(ValueError, match="its adapter was trained on other weights than those of"):
        Checkpoint(str(out)).model()


@pytest.mark.parametrize(
    ("folder", "settings", "part"),
    [
        ("translated_dir", {"ar_weight": 0.5}, "ar_weight needs a checkpoint whose clean stream is causal"),
        ("translated_dir", {"draft": True}, "draft needs a checkpoint whose clean stream is causal"),
        ("causal_dir", {"noise_order": "reference"}, "noise_order reference needs clean_attention 'block'"),
    ],
)
def test_settings_that_need_a_causal_clean_stream(request, processor, pictures, tmp_path, folder, settings, part):
    with pytest.raises(ValueError, match=part):
        trainer_of(request.getfixturevalue(folder), processor, some_records(pictures), tmp_path, **settings)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"train_modules": ["language_model"]}, "train_modules would train the base"),
        ({"vision_learning_rate": 1e-4}, "vision_learning_rate would train the base"),
        ({"ar_weight": 0.5}, "ar_weight would train the base"),
    ],
)
def test_a_draft_only_adapter_trains_nothing_else(causal_dir, tmp_path, capsys, changes, part):
    train(tmp_path, causal_dir, tmp_path / "out", code=2, **changes)
    assert part in capsys.readouterr().err


def test_a_draft_only_adapter_needs_a_causal_clean_stream(translated_dir, tmp_path, capsys):
    train(tmp_path, translated_dir, tmp_path / "out", code=2, draft=False)
    assert "needs clean_attention 'causal', got 'block'" in capsys.readouterr().err
