"""The tokens of a text with images, known from the images' sizes alone."""

import math
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..modeling.errors import UserError

IMAGE_GRID = "image_grid_thw"  # what an image processor gives that cuts images of any shape into a grid (Qwen-VL)


class ImageText:
    """Tokenises texts with images as a processor does, without looking at pixels.

    Args:
        processor: A Hugging Face processor.
        placeholder: What a chat template writes for an image.
        separator: A special token that a processor puts nowhere.
    """

    def __init__(self, processor: Any, placeholder: str, separator: str) -> None:
        self.processor = processor
        self.placeholder = placeholder
        self.separator = separator
        self._replacements: dict[tuple[tuple[int, int], ...], list[str]] = {}

    def tokenize(self, text: str, sizes: list[tuple[int, int]], final: bool = False) -> Tensor:
        """The tokens [n] of a text.

        Args:
            text: With a placeholder for each image.
            sizes: Height and width of each image.
            final: Whether the processor leaves the images at these sizes.

        Raises:
            ValueError: The processor refuses images of such sizes, or there are more or fewer placeholders.
        """
        parts = text.split(self.placeholder)
        if len(parts) != len(sizes) + 1:
            raise UserError(f"{len(sizes)} image(s) for {len(parts) - 1} places")
        images, tokenizer = self.processor.image_processor, self.processor.tokenizer
        if IMAGE_GRID in images.model_input_names:  # each placeholder is repeated
            limits = {"min_pixels": 1, "max_pixels": math.inf} if final else {}
            patches = [images.get_number_of_image_patches(*size, limits) for size in sizes]
            ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
            repeats = torch.ones_like(ids)
            repeats[ids == tokenizer.convert_tokens_to_ids(self.placeholder)] = (
                torch.tensor(patches) // images.merge_size**2
            )
            return ids.repeat_interleave(repeats)
        return self._joined(text, sizes) if self._regardless else self._whole(text, sizes)

    @cached_property
    def _regardless(self) -> bool:
        """Whether the processor writes an image without regard to what is around it (Idefics 2 merges neighbours)."""
        text, sizes = f"a{self.placeholder}{self.placeholder}b {self.placeholder}", [(64, 64)] * 3
        return torch.equal(self._joined(text, sizes), self._whole(text, sizes))

    def _joined(self, text: str, sizes: list[tuple[int, int]]) -> Tensor:
        """The tokens [n] of a text, given what the processor writes for such images elsewhere."""
        key, parts = tuple(sizes), text.split(self.placeholder)
        if key not in self._replacements:
            between = self._whole(self.separator.join([self.placeholder] * len(sizes)), sizes)
            written = self.processor.tokenizer.decode(between, clean_up_tokenization_spaces=False)
            # Of all images of a turn at once, since it may depend on their number (LLaVA-OneVision).
            self._replacements[key] = written.split(self.separator)
        pairs = zip(self._replacements[key], parts[1:], strict=True)
        joined = "".join([parts[0], *(piece for pair in pairs for piece in pair)])
        return torch.tensor(self.processor.tokenizer(joined, add_special_tokens=False)["input_ids"], dtype=torch.long)

    def _whole(self, text: str, sizes: list[tuple[int, int]]) -> Tensor:
        """The tokens [n] of a text as the processor writes it, with blank images."""
        blank = [Image.new("RGB", (width, height)) for height, width in sizes]
        inputs = self.processor(
            text=[text], images=[blank] if blank else None, return_tensors="pt", add_special_tokens=False
        )
        return inputs["input_ids"][0].long()
