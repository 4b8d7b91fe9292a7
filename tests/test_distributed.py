"""Two processes over gloo train as one does, under every engine that runs on CPUs."""

import json
import signal

import processes
import pytest
import torch
from test_resume import losses, recipe  # noqa: F401 (a fixture)

from diffusionvl.checkpoint import load_model


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):  # noqa: F811
    """The folder of one process that accumulates two batches a step."""
    return run(recipe, tmp_path_factory.mktemp("alone"), "ddp", world_size=1)


def run(recipe, out, engine, world_size=2, kill=None):  # noqa: F811
    """Trains with the same four rows a step, over as many processes as are asked for; `kill` is for the last one."""
    argv = [recipe, "--output_dir", str(out), "--global_batch_size", "4", "--use_cpu", "yes"]
    if engine != "ddp":
        argv += ["--deepspeed", f"configs/deepspeed/{engine}.json"]
    assert processes.run(processes.train, argv, world_size=world_size) == [0] * world_size
    return out


def assert_close(found, expected, tolerance):
    assert losses(found) == pytest.approx(losses(expected), rel=tolerance)
    weights = load_model(str(expected), torch.float32).state_dict()
    for name, value in load_model(str(found), torch.float32).state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=tolerance)


def test_two_processes_train_as_one(recipe, alone, tmp_path):  # noqa: F811
    run(recipe, tmp_path, "ddp")
    assert_close(tmp_path, alone, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_trains_as_one_process_does(recipe, alone, tmp_path, engine):  # noqa: F811
    run(recipe, tmp_path, engine)
    assert_close(tmp_path, alone, 1e-4)
