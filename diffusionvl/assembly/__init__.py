"""Assembly: joins a language model and a vision tower into a stock Hugging Face vision-language checkpoint."""

from .model import Assembly, assemble, save_assembly

__all__ = ["Assembly", "assemble", "save_assembly"]
