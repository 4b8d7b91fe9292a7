"""A tiny Qwen2.5-VL with random weights, its translation and a few pictures, shared by all tests."""

import pytest
import torch
from helpers import build_picture
from PIL import Image, ImageFile
from tiny_towers import save_clip, save_siglip
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

from diffusionvl.checkpoints.checkpoint import save_checkpoint
from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.translation.translate import translate
from studies.quickstart.base import build_base


def pytest_collection_modifyitems(items):
    """Without a GPU, tests that need one are skipped also where `-m gpu` asks for them."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory):
    """Folder of the AR base: a stock checkpoint with its processor."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = build_base()
    model.save_pretrained(folder)
    # A picture keeps its shape, so that pictures differ in their number of tokens: 4 to 16.
    processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def translated_dir(base_dir, tmp_path_factory):
    """Folder of the block-diffusion model with the base's weights, D = 8, and a clean stream of blocks: the paper's."""
    folder = str(tmp_path_factory.mktemp("translated"))
    save_checkpoint(*translate(base_dir, clean_attention="block"), folder)
    return folder


@pytest.fixture(scope="session")
def causal_dir(base_dir, tmp_path_factory):
    """Folder of the same model as `translate` makes it by default: its clean stream is causal."""
    folder = str(tmp_path_factory.mktemp("causal"))
    save_checkpoint(*translate(base_dir), folder)
    return folder


@pytest.fixture(scope="session")
def processor(translated_dir):
    return load_processor(translated_dir)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Paths of three pictures of different shapes: 16, 8 and 4 image tokens."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, size in enumerate([(64, 64), (64, 32), (32, 32)]):
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(build_picture(size, seed=number)).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def tower_dirs(tmp_path_factory):
    """Folders of a SigLIP and a CLIP vision tower, three layers each."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("siglip", "clip")}
    save_siglip(folders["siglip"])
    save_clip(folders["clip"])
    return folders


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    """Seeds every fixture, so that what a session shares does not depend on the tests that ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh():
    """The seed, and what a command that ran before has set for its process."""
    torch.manual_seed(0)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # importing lmms-eval sets it
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    unset_hf_deepspeed_config()
