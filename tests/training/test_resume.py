"""A run that was killed, or stopped, and resumed is the uninterrupted run: real processes, real signals."""

import random
import signal
import time

import processes
import pytest
import torch
from helpers import losses

from diffusionvl.checkpoints.loading import load_model
from diffusionvl.checkpoints.output_folder import locked
from diffusionvl.training.run_folder import damage, delete_old_checkpoints, newest_checkpoint, seal


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The folder of the run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    assert processes.run(processes.train, [recipe, "--output_dir", str(out)]) == [0]
    return out


def assert_same_run(found, expected, tolerance=0.0):
    """The same losses, weights and optimizer."""
    assert losses(found) == pytest.approx(losses(expected), rel=tolerance, abs=0)
    weights = load_model(str(expected)).state_dict()
    for name, value in load_model(str(found)).state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=tolerance)
    moments = [torch.load(folder / "checkpoint-6/optimizer.pt")["state"] for folder in (found, expected)]
    for index, state in moments[1].items():
        for name, value in state.items():
            torch.testing.assert_close(moments[0][index][name], value, rtol=0, atol=tolerance)


def test_a_run_writes_the_log_it_has(whole):
    assert len(losses(whole)) == 7
    assert damage(whole / "checkpoint-7") is None


@pytest.mark.parametrize(
    ("where", "step"),
    [
        ("on_step_end", 1),  # before there is a checkpoint
        ("_save_optimizer_and_scheduler", 4),  # in a checkpoint: the weights stand, the optimizer does not
        ("on_pre_optimizer_step", 5),
        ("save_state", 7),  # after the last step, before the last file
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(recipe, whole, tmp_path, where, step):
    argv = [recipe, "--output_dir", str(tmp_path)]
    assert processes.run(processes.train, argv, kill=(where, step)) == [-signal.SIGKILL]
    assert not (tmp_path / "trainer_state.json").exists()
    assert processes.run(processes.train, argv) == [0]
    assert_same_run(tmp_path, whole)


def test_a_stopped_run_has_saved_and_goes_on(recipe, whole, tmp_path):
    """SIGTERM to the whole group, also to the process that loads data."""
    argv = [recipe, "--output_dir", str(tmp_path), "--dataloader_num_workers", "1"]
    assert processes.run(processes.train, argv, term=("on_step_begin", 4)) == [143]
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-5")
    assert not (tmp_path / "model.safetensors").exists()
    assert processes.run(processes.train, argv) == [0]
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "checkpoint_files.json"])
@pytest.mark.parametrize("harm", ["cut", "gone", "other bytes"])
def test_damage_is_seen(tmp_path, name, harm):
    for file in ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "global_step2/rank_0.pt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(bytes(100))
    seal(tmp_path)
    assert damage(tmp_path) is None
    if harm == "cut":
        with open(tmp_path / name, "r+b") as file:
            file.truncate(50)
    elif harm == "other bytes":
        (tmp_path / name).write_bytes(bytes(99) + b"x")
    else:
        (tmp_path / name).unlink()
    assert name in damage(tmp_path)


def hold(folder, held):
    with locked(folder):
        open(held, "w").close()
        time.sleep(600)


def test_two_runs_do_not_write_into_one_folder(recipe, tmp_path):
    out, held, output = str(tmp_path / "out"), tmp_path / "held", tmp_path / "stderr"
    (holder,) = processes.start(hold, out, str(held))
    while not held.exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another run is writing into it"), locked(out):
        pass
    assert processes.run(processes.train, [recipe, "--output_dir", out], output=str(output)) == [2]
    assert output.read_text().startswith(f"diffusionvl train: error: '{out}': another run is writing into it")
    holder.kill()
    assert processes.wait([holder]) == [-signal.SIGKILL]
    with locked(out):  # free, whatever the other left behind
        pass


def test_old_checkpoints_go_only_when_a_new_one_is_whole(recipe, tmp_path):
    argv = [recipe, "--output_dir", str(tmp_path), "--save_total_limit", "1"]
    assert processes.run(processes.train, argv, kill=("_save_rng_state", 4)) == [-signal.SIGKILL]
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert processes.run(processes.train, argv) == [0]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-7"]


def test_folders_of_other_names_are_not_checkpoints(tmp_path):
    """Neither taken as the newest one, nor counted or deleted when old ones go."""
    names = ["checkpoint-3", "checkpoint-10", "checkpoint-best2", "checkpoint-old-50", "checkpoint-50-old", "x-99"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"w")
        seal(tmp_path / name)
    assert newest_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
    delete_old_checkpoints(str(tmp_path), 1, None)
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {"checkpoint-3"}


def test_the_best_checkpoint_stays_among_the_kept(tmp_path):
    for step in range(1, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    delete_old_checkpoints(str(tmp_path), 3, str(tmp_path / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


PLACES = (
    *("on_step_begin", "on_pre_optimizer_step", "on_step_end", "on_save", "_save_optimizer_and_scheduler"),
    *("_save_rng_state", "save_state", "checkpoints.seal", "checkpoints.seal+", "checkpoints.sync+"),
    *("checkpoints.delete_old_checkpoints", "checkpoints.delete_old_checkpoints+"),
)


@pytest.mark.slow
def test_fifty_kills_leave_the_run_as_it_is(recipe, tmp_path):
    """SIGKILL at random places, half of them inside the writing of checkpoints; each run goes on from the last one."""
    settings = ["--save_steps", "1", "--save_total_limit", "2"]
    assert processes.run(processes.train, [recipe, "--output_dir", str(tmp_path / "whole"), *settings]) == [0]
    source, kills, campaign = random.Random(0), 0, 0
    while kills < 50:
        out = tmp_path / str(campaign)
        argv, code = [recipe, "--output_dir", str(out), *settings], None
        while code != 0:
            newest = newest_checkpoint(str(out)) if out.is_dir() else None
            done = int(newest.rpartition("-")[2]) if newest else 0
            place = source.choice(PLACES)
            kill = (place, 7 if place == "save_state" else min(done + source.randint(1, 2), 7))
            (code,) = processes.run(processes.train, argv, kill=kill)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert losses(out) == losses(tmp_path / "whole")
        weights = load_model(str(tmp_path / "whole")).state_dict()
        for name, value in load_model(str(out)).state_dict().items():
            assert torch.equal(value, weights[name]), name
        # A kill after the last checkpoint may leave one more than the limit.
        assert {"checkpoint-6", "checkpoint-7"} <= {path.name for path in out.glob("checkpoint-*")}
        campaign += 1
        print(f"{kills} kills in {campaign} runs")
