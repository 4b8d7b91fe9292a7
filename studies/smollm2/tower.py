"""`python -m studies.smollm2.tower --out DIR`: trains a small SigLIP tower from nothing to see shapes.

No package carries a pretrained CLIP or SigLIP tower, so this one learns to name the shape and the colour in drawn
pictures (24 classes) before it meets a language model. The official test pictures only measure it.

Legend: B pictures.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from diffusionvl.commands.command_line import Parser
from diffusionvl.data.images import open_image
from diffusionvl.modeling.errors import UserError
from studies.quickstart.easy_vqa import COLORS, SHAPES, annotation, pictures_of
from studies.quickstart.shapes import SIZE, draw_shape

CLASSES = [(shape, color) for shape in SHAPES for color in COLORS]
PATCH_SIZE = 16  # 16 tokens a picture: what they cost is the language model's time


class DrawnPictures(Dataset):
    """Pictures drawn when they are asked for, each of one class.

    Args:
        count: Number of pictures.
        processor: The tower's image processor.
        seed: Picture i is drawn from (seed, i).
    """

    def __init__(self, count: int, processor: SiglipImageProcessorPil, seed: int) -> None:
        self.count = count
        self.processor = processor
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns pixels [3, 64, 64] and the class."""
        rng = random.Random(f"{self.seed}-{index}")
        label = rng.randrange(len(CLASSES))
        pixels = self.processor(draw_shape(*CLASSES[label], rng), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": label}


def build_tower(seed: int) -> tuple[SiglipForImageClassification, SiglipImageProcessorPil]:
    """Builds the untrained tower under a classifier of its averaged patches, and its image processor."""
    set_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    model = SiglipForImageClassification(SiglipConfig(vision_config=vision, num_labels=len(CLASSES)))
    # Centred on easy-VQA's light backgrounds, so that empty patches are near zero.
    size = {"height": SIZE, "width": SIZE}
    return model, SiglipImageProcessorPil(size=size, image_mean=[0.94] * 3, image_std=[0.25] * 3)


@torch.no_grad()
def accuracy(model: SiglipForImageClassification, processor: SiglipImageProcessorPil) -> float:
    """Returns the share of right names among the official test pictures whose shape and colour are settled."""
    pictures = [(path, *annotation(pairs)) for path, pairs in pictures_of("test")]
    known = [(path, CLASSES.index((shape, color))) for path, shape, color in pictures if shape and color]
    pixels: Tensor = processor([open_image(path, "test") for path, _ in known], return_tensors="pt")["pixel_values"]
    found = model.eval()(pixels.to(model.device)).logits.argmax(-1).cpu()
    return (found == torch.tensor([label for _, label in known])).float().mean().item()


def main(argv: list[str] | None = None) -> int:
    """Trains, measures and saves the tower.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m studies.smollm2.tower", description="Train a small SigLIP tower.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tower and its image processor")
    parser.add_argument("--steps", type=int, default=1500, help="steps of 128 drawn pictures (1500)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and pictures (0)")
    return parser.run(_train, argv)


def _train(arguments: argparse.Namespace) -> None:
    """Trains, measures and saves the tower."""
    if arguments.steps < 1:
        raise UserError(f"--steps must be at least 1, got {arguments.steps}")
    model, processor = build_tower(arguments.seed)
    settings = TrainingArguments(
        output_dir=str(arguments.out),
        max_steps=arguments.steps,
        per_device_train_batch_size=128,
        learning_rate=1e-3,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        dataloader_num_workers=1,
        dataloader_pin_memory=False,
        seed=arguments.seed,
    )
    pictures = DrawnPictures(arguments.steps * settings.per_device_train_batch_size, processor, arguments.seed)
    Trainer(model, settings, train_dataset=pictures).train()
    model.vision_model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    print(
        f"{arguments.out}: {model.vision_model.num_parameters():,} parameters; names shape and colour of "
        f"{100 * accuracy(model, processor):.2f} % of the official test pictures"
    )


if __name__ == "__main__":
    sys.exit(main())
