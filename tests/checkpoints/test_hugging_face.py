"""What users of transformers expect of any folder that this package writes, with torchvision or without."""

import pytest
import torch
from helpers import QUESTION
from PIL import Image
from tiny_families import save_base
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

from diffusionvl import DiffusionVLForConditionalGeneration, save_checkpoint, translate
from diffusionvl.checkpoints.loading import load_model, load_processor


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    """Folder of a block-diffusion model that reads text alone."""
    folder = tmp_path_factory.mktemp("text")
    save_base("Llama", str(folder / "base"))
    save_checkpoint(*translate(str(folder / "base")), str(folder / "out"))
    return str(folder / "out")


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM])
def test_auto_classes_load_the_model(translated_dir, auto_class):
    assert type(auto_class.from_pretrained(translated_dir)) is DiffusionVLForConditionalGeneration


def test_auto_processor_loads_what_the_folder_holds(translated_dir, text_dir):
    processor = AutoProcessor.from_pretrained(translated_dir)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    image = Image.new("RGB", (64, 32), "red")
    expected = load_processor(translated_dir)(text=["<|image_pad|>"], images=[image], return_tensors="pt")
    found = processor(text=["<|image_pad|>"], images=[image], return_tensors="pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert type(AutoProcessor.from_pretrained(text_dir)) is type(AutoTokenizer.from_pretrained(text_dir))


def test_pipelines_answer_and_print_themselves(translated_dir, text_dir):
    content = [{"type": "image", "image": Image.new("RGB", (32, 32))}, {"type": "text", "text": QUESTION}]
    reader = pipeline("image-text-to-text", model=translated_dir)
    assert "ImageTextToTextPipeline" in repr(reader)
    (answer,) = reader(text=[{"role": "user", "content": content}], max_new_tokens=4)
    assert answer["generated_text"][-1]["role"] == "assistant"
    writer = pipeline("text-generation", model=text_dir)
    assert "TextGenerationPipeline" in repr(writer)
    (answer,) = writer([{"role": "user", "content": QUESTION}], max_new_tokens=4)
    assert answer["generated_text"][-1]["role"] == "assistant"


def test_embeddings_can_be_resized(translated_dir, tmp_path):
    model = load_model(translated_dir)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 5)
    model.save_pretrained(tmp_path)
    for each in (model, load_model(str(tmp_path))):
        assert each.config.vocab_size == each.config.get_text_config().vocab_size == rows + 5
        assert each.get_input_embeddings().num_embeddings == rows + 5
        assert each(torch.tensor([[1, rows + 4, 2]])).logits.shape == (1, 3, rows + 5)


def test_the_config_shows_the_text_model(translated_dir):
    config = load_model(translated_dir).config
    assert config.text_config is config.get_text_config() is config.base_config.text_config
    assert config.hidden_size == config.text_config.hidden_size


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_reads_no_mask_is_refused_with_the_reason(translated_dir, implementation):
    reason = f"attn_implementation='{implementation}' cannot read a block-diffusion mask; use 'sdpa'"
    with pytest.raises(ValueError, match=reason):
        AutoModelForImageTextToText.from_pretrained(translated_dir, attn_implementation=implementation)
    with pytest.raises(ValueError, match=reason):
        load_model(translated_dir).set_attn_implementation(implementation)


def test_labels_are_refused_with_the_remedy(translated_dir):
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(
        ValueError, match=r"not the block-diffusion loss; train with diffusionvl\.BlockDiffusionTrainer"
    ):
        load_model(translated_dir)(ids, labels=ids)
