"""`diffusionvl draft`: from an AR model and prompts to an adapter whose answers are the model's own."""

import json

import pytest
from helpers import QUESTION, run

from diffusionvl.checkpoints.checkpoint import Checkpoint, save_checkpoint
from diffusionvl.commands.draft import own_answers
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.sources.records import read_records


@pytest.fixture
def records(pictures, tmp_path):
    """A file of five prompts with pictures."""
    lines = [
        {"images": [pictures[n % 3]], "messages": [{"role": "user", "content": f"<image>{QUESTION} {n}"}]}
        for n in range(5)
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return str(tmp_path / "records.jsonl")


FEW = ("--held-out", "2", "--steps", "2", "--rows", "2", "--max-new-tokens", "8", "--block-size", "4", "--rank", "2")
FEW += ("--layers", "o_proj", "down_proj")


def test_a_model_learns_to_draft_its_own_answers(base_dir, records, tmp_path, capsys):
    out = tmp_path / "draft"
    code, printed, err = run(capsys, "draft", base_dir, "--records", records, "--out", str(out), *FEW)
    assert code == 0, err
    assert "2 of 2 answers are equal in both." in printed
    assert "## What was gained" in (out / "README.md").read_text()
    assert len((out / "work/answers.jsonl").read_text().splitlines()) == 5
    config = Checkpoint(str(out)).config
    assert config.draft_adapter["layers"] == ["down_proj", "o_proj"]
    assert (config.draft_adapter["base"], config.block_size, config.clean_attention) == (base_dir, 4, "causal")
    assert Checkpoint(str(out)).model().draft is not None
    # Run again, it finds that all of it is done.
    code, printed, err = run(capsys, "draft", base_dir, "--records", records, "--out", str(out), *FEW)
    assert code == 0, err
    assert "nothing is left to do" in printed
    # With other settings, it does not call the old drafts its own.
    code, _, err = run(capsys, "draft", base_dir, "--records", records, "--out", str(out), *FEW, "--rank", "3")
    assert code == 2
    assert "holds drafts of other settings (rank 2, now 3); give another --out" in err


def test_a_base_without_a_spare_row_for_the_mask_learns_to_draft(base_dir, records, tmp_path, capsys):
    """The adapter embeds the mask itself, and the base keeps its table."""
    model, processor = Checkpoint(base_dir).model(), Checkpoint(base_dir).processor
    model.resize_token_embeddings(len(processor.tokenizer))
    save_checkpoint(model, processor, str(tmp_path / "base"))
    out = str(tmp_path / "draft")
    code, printed, err = run(capsys, "draft", str(tmp_path / "base"), "--records", records, "--out", out, *FEW)
    assert code == 0, err
    assert "2 of 2 answers are equal in both." in printed
    drafted = Checkpoint(out).model()
    assert drafted.config.mask_token_id == len(processor.tokenizer) == drafted.get_input_embeddings().num_embeddings


def test_answers_that_were_cut_teach_no_end(base_dir, records, tmp_path):
    lines = [{"index": n, "answer": "no", "tokens": tokens} for n, tokens in enumerate((2, 8, 3, 8, 8))]
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    own = own_answers(read_records([records], answered=False), tmp_path / "answers.jsonl", 8)
    encoder = ConversationEncoder(Checkpoint(base_dir).processor)
    ended = [encoder.encode(record).input_ids[-1] == encoder.end_of_turn_id for record in own]
    assert ended == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--block-size", "1"), "--block-size 1: give 2 or more"),
        (("--learning-rate", "nan", "--held-out", "2"), "learning_rate must be a number of at least 0, got nan"),
        (("--seed", "-1", "--held-out", "2"), "seed must be at least 0"),
        (("--held-out", "5"), "--held-out 5 leaves none of 5 records"),
        (("--records", "none.jsonl"), "none.jsonl"),
        (("--layers", "wo", "--held-out", "2"), "a draft adapter cannot change wo; the decoder's linear layers are"),
    ],
)
def test_an_input_that_cannot_be_used(base_dir, records, tmp_path, capsys, flags, part):
    argv = ("draft", base_dir, "--records", records, "--out", str(tmp_path / "draft"), *flags)
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert part in err
    assert not (tmp_path / "draft" / "work" / "answers.jsonl").exists()
