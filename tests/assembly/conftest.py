"""A tiny language model, and what is assembled from it."""

import pytest
from assemblies import text_tokenizer
from tiny_families import text_config
from transformers import LlamaConfig, LlamaForCausalLM

from diffusionvl.assembly import assemble
from diffusionvl.checkpoints.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def lm_dir(tmp_path_factory):
    """Folder of a tiny Llama, with rows in its embeddings that no token uses."""
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = text_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(**text_config(tokenizer, tie_word_embeddings=True)))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.repetition_penalty = 1.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def build(lm_dir, tower_dirs, tmp_path_factory):
    """A function that gives the folder of an assembly, made once."""
    made = {}

    def build(tower, grid):
        if (tower, grid) not in made:
            made[tower, grid] = str(tmp_path_factory.mktemp(f"{tower}-{grid}"))
            save_checkpoint(*assemble(lm_dir, tower_dirs[tower], grid), made[tower, grid])
        return made[tower, grid]

    return build
