"""The study's count of right drafts: it says what speculative decoding does, without decoding."""

from pathlib import Path

import pytest
import torch

from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.cli import main
from diffusionvl.commands.answer import split
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.prompts import encode
from diffusionvl.data.sources.json_records import write_jsonl
from diffusionvl.training.dataset import RowDataset
from studies.lossless import acceptance
from studies.quickstart import easy_vqa

NEW = 24
BASE = str(Path(__file__).parents[2] / "assets/easy-vqa-base")


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    """A folder of `diffusionvl draft`, whose adapter has learnt a little, and the file of its records."""
    folder = tmp_path_factory.mktemp("acceptance")
    records = folder / "records.jsonl"
    write_jsonl(easy_vqa.test_records("long", 12), records)
    flags = {"--held-out": 3, "--steps": 40, "--rows": 6, "--views": 2, "--checkpoints": 2, "--max-new-tokens": NEW}
    flags |= {"--block-size": 4, "--rank": 8, "--learning-rate": 1e-2}
    words = [str(word) for pair in flags.items() for word in pair]
    assert main(["draft", BASE, "--records", str(records), "--out", str(folder / "out"), *words]) == 0
    return folder / "out", records


def test_the_count_is_what_the_engine_does(drafted):
    out, records = drafted
    checkpoint = Checkpoint(str(out))
    model = checkpoint.model().double().eval()
    held_out = acceptance.held_out([str(records)], out, 3)
    rows = RowDataset(held_out, ConversationEncoder(checkpoint.processor), model.config)
    some = 0
    for index, record in enumerate(held_out):
        inputs = encode(checkpoint.processor, [split(record)[0]])
        settings = {"max_new_tokens": NEW, "return_dict_in_generate": True, "decoding": "speculative"}
        right = acceptance.right_drafts(model, rows, index, 4)
        some += sum(right)
        for size in (2, 3, 4):
            output = model.generate(**inputs, **settings, draft_size=size)
            steps, _ = acceptance.decode([min(one, size - 1) for one in right], size, False)
            assert steps == int(output.forwards[0])
    assert some > 10


def test_drafts_are_right_up_to_the_first_that_is_not():
    answer = torch.tensor([5, 6, 7, 8])
    drafts = torch.tensor([[0, 6, 7], [6, 0, 8], [0, 8, 9], [0, 9, 9]])
    assert acceptance.count_right(drafts, answer) == [2, 0, 1, 0]


def test_drafts_after_a_rejection_save_the_forward_that_drafts_anew():
    assert acceptance.decode([2] * 9, 3, False)[0] == acceptance.decode([2] * 9, 3, True)[0] == 4
    assert acceptance.decode([0] * 5, 3, False) == (5, 2 * (3 + 3) + 2 * (1 + 3))
    assert acceptance.decode([0] * 5, 3, True) == (5, 4 * (3 + 3 * 3))
    assert acceptance.decode([0, 1] * 4, 2, True)[0] < acceptance.decode([0, 1] * 4, 2, False)[0]


def test_every_checkpoint_is_measured_once(drafted, tmp_path, capsys):
    out, records = drafted
    argv = [str(out), "--records", str(records), "--held-out", "3", "--out", str(tmp_path / "found.json")]
    assert acceptance.main(argv) == 0
    printed = capsys.readouterr().out
    assert "step 20: right drafts by place" in printed
    assert "| masks | after a rejection |" in printed
    first = (tmp_path / "found.json").read_text()
    assert acceptance.main(argv) == 0
    assert (tmp_path / "found.json").read_text() == first


def test_a_folder_without_checkpoints_is_refused(tmp_path, capsys):
    assert acceptance.main([str(tmp_path), "--records", "x.jsonl", "--out", str(tmp_path / "found.json")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
