"""Assembly: joins a language model and a vision tower into a stock Hugging Face vision-language checkpoint."""

from .model import assemble

__all__ = ["assemble"]
