"""Parts of assemblies: a tiny language model's tokenizer, changed copies of it, and turns with pictures."""

import json
import shutil

from tiny_families import TEXT_TEMPLATE, WORDS

from studies.quickstart.base import build_tokenizer

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "What is it?"}


def text_tokenizer():
    """A tokenizer without a token for images, and a template that takes strings alone."""
    tokenizer = build_tokenizer([WORDS])
    tokenizer.chat_template = TEXT_TEMPLATE
    return tokenizer


def change_lm(lm_dir, folder, chat_template=None, **settings):
    """A copy of the language model with another chat template or settings."""
    shutil.copytree(lm_dir, folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return str(folder)


def turn(content, role="user"):
    return {"role": role, "content": content}
