"""What only a GPU can show of training: tiles in half precision, FSDP2 of one process, four-bit layers."""

import math
import subprocess
import sys

import pytest
from helpers import losses

from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.translation.translate import translate

pytestmark = pytest.mark.gpu
HALF = ("--bf16", "yes")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")


def train(recipe, out, *settings, launcher=()):
    """The losses of three steps."""
    command = [sys.executable, *launcher, "-m", "diffusionvl.train", recipe, "--output_dir", str(out)]
    done = subprocess.run([*command, "--max_steps", "3", *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return losses(out)


def test_tiles_train_as_the_dense_mask(recipe, tmp_path):
    for name, settings in (("rows", HALF), ("packed", (*HALF, "--packing", "yes", "--pack_tokens", "256"))):
        expected = train(recipe, tmp_path / f"{name}-sdpa", *settings, "--attention", "sdpa")
        assert train(recipe, tmp_path / f"{name}-flex", *settings, "--attention", "flex") == pytest.approx(
            expected, 2e-2
        )


def test_fsdp2_trains_as_one_process_alone(recipe, tmp_path):
    expected = train(recipe, tmp_path / "alone", *HALF)
    found = train(recipe, tmp_path / "fsdp2", *HALF, "--fsdp_config", "configs/fsdp/fsdp2.json", launcher=TORCHRUN)
    assert found == pytest.approx(expected, 2e-2)


def test_four_bits_train(recipe, tmp_path):
    pytest.importorskip("bitsandbytes")
    found = train(recipe, tmp_path / "qlora", *HALF, "--lora_r", "4", "--quantization", "4bit")
    assert all(map(math.isfinite, found))


def test_drafts_for_a_base_in_four_bits_train(recipe, base_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    causal = str(tmp_path / "causal")
    save_checkpoint(*translate(base_dir, block_size=4, clean_attention="causal"), causal)
    drafts = ("--model", causal, "--lora_on", "noisy", "--lora_r", "4", "--draft", "yes")
    found = train(recipe, tmp_path / "drafts", *HALF, *drafts, "--quantization", "4bit")
    assert all(map(math.isfinite, found))
