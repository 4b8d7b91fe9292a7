"""The model card of a checkpoint folder."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import AutoModelForImageTextToText

from ..modeling.configuration_diffusionvl import DiffusionVLConfig
from ..modeling.families import auto_class

CARD = "README.md"
TEMPLATES = Environment(loader=PackageLoader("diffusionvl", "checkpoints"), undefined=StrictUndefined, trim_blocks=True)


def write_model_card(out: str, config: DiffusionVLConfig, finetuned: bool = False) -> None:
    """Writes `README.md` of a checkpoint folder."""
    card = TEMPLATES.get_template("model_card.md.jinja")
    images = auto_class(config.base_config) is AutoModelForImageTextToText
    text = card.render(config=config, finetuned=finetuned, images=images)
    Path(out, CARD).write_text(text + "\n", encoding="utf-8")


def extend_model_card(path: Path, auto_model: str) -> None:
    """Says at the end of a model card how the folder is loaded without this package, unless it does so already."""
    section = TEMPLATES.get_template("export_card.md.jinja").render(auto_model=auto_model) + "\n"
    card = path.read_text(encoding="utf-8")
    if section not in card:
        path.write_text(f"{card}\n{section}", encoding="utf-8")
