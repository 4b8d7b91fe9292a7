"""`diffusionvl doctor` reports what is there and what is missing."""

import importlib.metadata

import pytest
import torch

from diffusionvl.cli import main


def lines(capsys):
    return {line.split()[0]: line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()}


def test_what_is_there_is_reported(capsys):
    assert main(["doctor"]) == 0
    found = lines(capsys)
    assert found["torch"].split()[1] == importlib.metadata.version("torch")
    assert found["peft"] if "peft" in found else "LoRA" in found["train"]
    assert found["SDPA"].endswith("works")
    assert {"versions", "devices", "kernels", "extras", "python", "cpu", "train", "bitsandbytes"} <= found.keys()


@pytest.fixture
def installed(monkeypatch):
    """A function that changes which version of a package is found, None for none."""
    real = importlib.metadata.version

    def change(package, version):
        def found(name):
            if name != package:
                return real(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", found)

    return change


@pytest.mark.parametrize(
    ("package", "version", "part"),
    [("accelerate", None, "is missing"), ("transformers", "5.2.0", "5.2.0 is not <6,>=5.17")],
)
def test_what_everything_needs_must_be_there(installed, capsys, package, version, part):
    installed(package, version)
    assert main(["doctor"]) == 1
    assert part in lines(capsys)[package]


def test_what_an_extra_lacks_is_reported_with_the_remedy(installed, capsys):
    installed("peft", None)
    assert main(["doctor"]) == 0
    assert lines(capsys)["train"].endswith("wandb: peft is missing: `pip install 'diffusionvl[train]'`")


def test_a_kernel_that_fails_is_reported(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", broken)
    assert main(["doctor"]) == 1
    assert "fails: no such kernel" in lines(capsys)["SDPA"]


def test_the_kernel_is_asked_for_its_gradient(monkeypatch, capsys):
    name = "torch.nn.functional.scaled_dot_product_attention"
    monkeypatch.setattr(name, lambda query, key, value, attn_mask: query * torch.nan)
    assert main(["doctor"]) == 1
    assert "not finite" in lines(capsys)["SDPA"]
