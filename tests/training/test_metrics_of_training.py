"""What the log tells of a step, against loops and a clock that stands still."""

from types import SimpleNamespace

import pytest
import torch

from diffusionvl.training import metrics as module
from diffusionvl.training.metrics import TrainingMetrics


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    return clock


def collect(metrics, names=()):
    return metrics.collect(lambda sums: sums, names)


def test_cross_entropy_is_told_by_noise_level(clock):
    metrics = TrainingMetrics(torch.device("cpu"), None)
    t = torch.tensor([0.001, 0.249, 0.25, 0.7, 0.999, 1.0])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
    metrics.add_noise(losses[:4], t[:4])
    metrics.add_noise(losses[4:], t[4:])
    clock.now = 1.0
    logs, _ = collect(metrics)
    found = {name.removeprefix("cross_entropy_t"): value for name, value in logs.items() if "cross_entropy" in name}
    assert found == {"0.00-0.25": 1.5, "0.25-0.50": 3.0, "0.50-0.75": 4.0, "0.75-1.00": 6.0}


def test_rates_are_of_the_time_spent_on_training(clock):
    metrics = TrainingMetrics(torch.device("cpu"), peak=1e12)
    metrics.add(clean=60, noisy=40, supervised=30, flops=torch.tensor(5e11, dtype=torch.float64), t=15.0)
    metrics.add(correct=3, targets=4)
    with metrics.paused():
        clock.now = 8.0
    clock.now = 10.0
    logs, counts = collect(metrics, ("dropped",))
    assert counts == {"dropped": 0}
    assert logs == {
        "accuracy": 0.75,
        "tokens_per_second": 50,
        "clean_tokens_per_second": 30,
        "noisy_tokens_per_second": 20,
        "supervised_tokens_per_second": 15,
        "tflops_per_device": 0.25,
        "mfu": 0.25,
        "mean_t": 0.5,
    }
    clock.now = 11.0
    assert collect(metrics)[0]["tokens_per_second"] == 0  # it has begun anew


def test_processes_are_summed_and_a_device_is_one_of_them(clock):
    metrics = TrainingMetrics(torch.device("cpu"), peak=1e12)
    metrics.add(clean=10, flops=5e11, dropped=1)
    clock.now = 1.0
    logs, counts = metrics.collect(lambda sums: 2 * sums, ("dropped",))  # another process with the same numbers
    assert (logs["tokens_per_second"], logs["mfu"], counts["dropped"]) == (20, 0.5, 2)
