"""On-policy training: batches with the model's own answers, and what is learned from them."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from helpers import QUESTION, assert_same, conversation, enliven, logits_of, some_records

from diffusionvl import BlockDiffusionConfig, RowDataset
from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.record import DataError, Record
from diffusionvl.data.sources.json_records import write_jsonl
from diffusionvl.modeling.block_masks import CLEAN
from diffusionvl.objective.loss import IGNORED
from diffusionvl.train import main
from diffusionvl.training.checks import check_objective, check_rows
from diffusionvl.training.losses import block_diffusion_loss, fill_distance
from diffusionvl.training.next_tokens import load_teacher
from diffusionvl.training.own_answers import Prompts, with_own_answers

TOKENS = 21  # of the longest answer: two blocks of 8 and a part of one


@pytest.fixture(scope="module")
def student(causal_dir):
    """A translation that writes several tokens in one step and one in others."""
    model = enliven(Checkpoint(causal_dir).model(torch.float32))
    model.generation_config.confidence_threshold = 0.5
    end, often = model.generation_config.eos_token_ids[0], 278  # which these weights write inside an answer
    with torch.no_grad():
        model.get_input_embeddings().weight[[end, often]] = model.get_input_embeddings().weight[[often, end]]
    return model


def settings_of(tmp_path, **settings):
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "on_policy_from": 0, "on_policy_tokens": TOKENS}
    return BlockDiffusionConfig(**defaults, **settings)


def turns_of(model, processor, record):
    """The oracle: asks for one answer after the other, alone, and notes prompt, answer and denoising of each."""
    encoded = ConversationEncoder(processor).encode(record)
    ids, learnt = encoded.input_ids.tolist(), (encoded.labels != IGNORED).tolist()
    pictures = [place for place, token in enumerate(ids) if token == model.config.base_config.image_token_id]
    begins = [place for place in range(1, len(ids)) if learnt[place] and not learnt[place - 1]]
    begins = [place for place in begins if place > max(pictures, default=0)]
    said, turns = ids[: begins[0]], []
    for begin, following in zip(begins, [*begins[1:], len(ids)], strict=True):
        settings = {"max_new_tokens": TOKENS, "output_history": True, "return_dict_in_generate": True}
        output = model.eval().generate(torch.tensor([said]), **encoded.media, **settings)
        answer = output.sequences[0, len(said) :].tolist()
        turns.append((len(said), answer, output.history))
        end = next(place for place in range(begin, len(ids) + 1) if place == len(ids) or not learnt[place])
        said = said + answer + ids[end:following]
        if answer[-1] != processor.tokenizer.eos_token_id:
            break
    return said[: turns[-1][0]] + turns[-1][1], turns


def talks(pictures):
    """Two turns about a picture, several pictures of which the last comes late, and text alone."""
    talk = (QUESTION, "yes", pictures[0]), ("is there a circle?", "no"), ("what shape is in the image?", "a circle")
    return [conversation(*talk), *some_records(pictures)]


@pytest.mark.parametrize("packs", [[[0], [1], [2], [3]], [[2, 0], [1, 3]]])
def test_a_batch_holds_what_the_model_answers_and_masks_what_it_had_not_written(
    student, processor, pictures, tmp_path, packs
):
    records = talks(pictures)
    rows = RowDataset(records, ConversationEncoder(processor), student.config, views=2)
    batch = rows.collate([[rows[index] for index in pack] for pack in packs])
    args, mask_id, eos = settings_of(tmp_path), student.config.mask_token_id, processor.tokenizer.eos_token_id
    alone = [turns_of(student, processor, records[index]) for pack in packs for index in pack]
    made, conversations = with_own_answers(student, rows, batch, args, 0)
    found, sizes = set(), set()
    for step in range(12):
        noise = block_diffusion_loss(student, made, args, mask_id, step).noise
        for document, (ids, turns) in enumerate(alone):
            own = made["document_ids"] == document
            assert made["input_ids"][own & (made["stream_ids"] == CLEAN)].tolist() == ids
            for view in (1, 2):
                noisy = own & (made["stream_ids"] == view)
                labels, masked = made["labels"][noisy].tolist(), noise.masked[noisy].tolist()
                for begin, answer, history in turns:  # block by block
                    whole = answer + [eos] * (-len(answer) % 8 if answer[-1] == eos else 0)
                    assert labels[: len(whole)] == whole
                    for first in range(0, len(whole), 8):
                        steps = [one.masked[0].tolist() for one in history if one.columns[0, 0] == begin + first]
                        seen = masked[first : min(first + 8, len(whole))]
                        assert seen in [state[: len(seen)] for state in ([True] * 8, *steps[:-1])]
                        found.add((document, begin + first, tuple(seen)))
                        sizes.add(8 - sum(steps[0]))
                    labels, masked = labels[len(whole) :], masked[len(whole) :]
                assert not labels
    assert len({block[:2] for block in found}) < len(found)  # a block has been seen in several states
    assert len(sizes) > 1  # steps have written one token, or several
    ended = [[eos in answer.tolist() for answer in one.answers] for one in conversations]
    assert [True, False] in ended  # a second turn follows the first that ended
    assert [False] in ended  # cut
    steps = [sum(len(history) for _, _, history in turns) for _, turns in alone]
    assert [one.forwards for one in conversations] == steps


@pytest.mark.parametrize("packs", [[[0], [1]], [[1, 0]]])
@pytest.mark.parametrize("frozen", [True, False])
def test_own_answers_learn_what_the_teacher_predicts(student, base_dir, processor, tmp_path, packs, frozen):
    records = [conversation(("is it?", "no")), conversation(("what shape is in the image?", "circle"))]
    rows = RowDataset(records, ConversationEncoder(processor), student.config)
    teacher = load_teacher(base_dir, "float32", student.config, processor) if frozen else None
    args = settings_of(tmp_path, ar_weight=0.5, teacher_top_k=5, weighting="uniform", normalizer="tokens")
    batch = rows.collate([[rows[index] for index in pack] for pack in packs])
    made, _ = with_own_answers(student, rows, batch, args, 0)
    losses = block_diffusion_loss(student, made, args, student.config.mask_token_id, 3, teacher)
    predicted = logits_of(student, made, losses.noise.x_t)
    twins, places = made["twins"].flatten(), []
    for place, found in zip(losses.tokens.tolist(), losses.surprise, strict=True):
        if fill_distance(made).flatten()[place]:  # after the end of turn: nothing but more of it
            expected = -predicted[place].log_softmax(-1)[made["labels"].flatten()[place]]
        else:
            expected = divergence_by_hand(predicted[place], before(student, teacher, made, int(twins[place])))
            places.append(int(twins[place]))
        assert_same(found, expected, 1e-4)
    assert len(places) > 8
    if teacher is None:  # which would learn from itself
        assert losses.clean is None
        return
    for place, found in zip(losses.clean.tokens.tolist(), losses.clean.surprise, strict=True):
        assert_same(found, divergence_by_hand(predicted[place - 1], before(student, teacher, made, place)), 1e-4)


def test_the_clean_stream_learns_where_nothing_but_fill_is_masked(student, base_dir, processor, tmp_path):
    rows = RowDataset([conversation(("is it?", "no"))], ConversationEncoder(processor), student.config)
    teacher = load_teacher(base_dir, "float32", student.config, processor)
    args = settings_of(tmp_path, ar_weight=1.0)
    batch = rows.collate([rows[0]])
    batch["written"] = (fill_distance(batch) > 0).long()  # as if it had been written last
    found = [block_diffusion_loss(student, batch, args, student.config.mask_token_id, n, teacher) for n in range(8)]
    alone = [losses for losses in found if (fill_distance(batch).flatten()[losses.tokens] > 0).all()]
    assert 0 < len(alone) < 8
    for losses in found:
        assert_same(losses.clean.weighted, found[0].clean.weighted)


def before(student, teacher, batch, place):
    """What the teacher predicts at a clean token of a batch without pictures, from the tokens before it [V]."""
    documents = batch["document_ids"].flatten()
    begin = int((documents == documents[place]).nonzero()[0])
    ids = batch["input_ids"].flatten()[None, begin:place]
    with torch.no_grad():
        return (student if teacher is None else teacher)(input_ids=ids).logits[0, -1]


def divergence_by_hand(student, teacher):
    """Kullback-Leibler divergence over the teacher's five most probable tokens."""
    known, chosen = teacher.topk(5)
    p, q = known.softmax(-1).tolist(), student.softmax(-1)[chosen].tolist()
    return torch.tensor(sum(one * math.log(one / other) for one, other in zip(p, q, strict=True)))


def test_records_without_answers_become_prompts(processor, student, tmp_path):
    whole = conversation(("is it?", "no"), ("what shape is in the image?", "circle"))
    prompts = Prompts([whole, Record(whole.messages[:-1], "test")])
    assert len(prompts) == 2
    rows = RowDataset(prompts, ConversationEncoder(processor), student.config)
    made = []
    for index in range(2):
        batch = rows.collate([rows[index]])
        batch["rows"][0] = 0  # which seeds the draws
        made.append(with_own_answers(student, rows, batch, settings_of(tmp_path), 0)[0])
    for name, value in made[0].items():
        assert torch.equal(value, made[1][name]) if isinstance(value, torch.Tensor) else value == made[1][name]


def test_rows_of_packs_have_room_for_the_longest_answer(processor, student, pictures, tmp_path):
    records = talks(pictures)
    rows = RowDataset(records, ConversationEncoder(processor), student.config, views=2, longest_answer=TOKENS)
    for index in range(4):
        tokens, images = rows.measure(index)
        made, _ = with_own_answers(student, rows, rows.collate([rows[index]]), settings_of(tmp_path), 0)
        assert (made["document_ids"][0] == 0).sum() <= tokens
        assert images == len(records[index].images)


def test_a_longest_row_cuts_own_answers(processor, student, tmp_path):
    record = conversation(("what shape is in the image?", "circle"))
    encoder = ConversationEncoder(processor, max_length=15 + 3)
    rows = RowDataset([record], encoder, student.config)
    made, (talk,) = with_own_answers(student, rows, rows.collate([rows[0]]), settings_of(tmp_path), 0)
    clean = made["input_ids"][(made["stream_ids"] == CLEAN) & (made["document_ids"] == 0)]
    assert len(clean) == 18
    _, ((_, answer, _),) = turns_of(student, processor, record)
    assert clean[15:].tolist() == talk.answers[0].tolist() == answer[:3]


def test_a_picture_after_the_last_answer_that_carries_loss(processor, student, pictures):
    record = conversation(("is it?", "no"), (QUESTION, "yes", pictures[0]))
    record.messages[-1]["supervised"] = False
    rows = RowDataset([record], ConversationEncoder(processor), student.config, longest_answer=TOKENS)
    with pytest.raises(DataError, match="a picture after its last answer that carries loss"):
        rows.measure(0)
    assert "a picture after its last answer that carries loss" in str(rows[0].error)


def test_own_answers_fit_neither_other_supervision_nor_spread_weights(translated_dir, processor, student, tmp_path):
    rows = RowDataset([conversation(("is it?", "no"))], ConversationEncoder(processor, "structural"), student.config)
    with pytest.raises(ValueError, match="on_policy_from needs supervision 'assistant', got 'structural'"):
        check_rows(rows, settings_of(tmp_path))
    args = settings_of(tmp_path)
    args.fsdp = True
    with pytest.raises(ValueError, match="needs whole weights in each process"):
        check_objective(student.config, args)


def test_a_run_on_questions_alone(recipe, causal_dir, tmp_path, capsys):
    settings = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    lines = Path(settings["train_records"][0]).read_text(encoding="utf-8").splitlines()
    records = [{**record, "messages": record["messages"][:1]} for record in map(json.loads, lines)]
    write_jsonl(records, tmp_path / "questions.jsonl")
    argv = [recipe, "--model", causal_dir, "--train_records", str(tmp_path / "questions.jsonl"), "--max_steps", "2"]
    argv += ["--on_policy_tokens", "9", "--packing", "yes", "--output_dir"]
    assert main([*argv, str(tmp_path / "late"), "--on_policy_from", "1"]) == 2
    assert "has no assistant turn to learn from" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "all"), "--on_policy_from", "0"]) == 0
    log = [json.loads(line) for line in (tmp_path / "all" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(0 < line["own_forwards_per_token"] <= 10 for line in log if "loss" in line)
    assert log[0]["own_tokens_per_second"] > 0
    # The plan says what is learned, and a run that ends before its first answer is refused.
    assert "on answers of the model's own in every step" in capsys.readouterr().out
    steps = ["--max_steps", "-1", "--num_train_epochs", "1", "--train_records", settings["train_records"][0]]
    assert main([*argv, str(tmp_path / "short"), *steps, "--on_policy_from", "1000"]) == 2
    assert "on_policy_from=1000 is not reached" in capsys.readouterr().err
