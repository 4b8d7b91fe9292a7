"""What the task files of this folder call: documents to prompts, answers to scores."""

import io
import json
from pathlib import Path

from PIL import Image

from diffusionvl.evaluation.scores import exact_match, relaxed_match, token_f1

DATA = Path(__file__).parents[2] / "outputs" / "eval-data"


def _image(folder: str, doc: dict) -> list[Image.Image]:
    with Image.open(DATA / folder / doc["image"]) as file:
        return [file.convert("RGB")]


def easy_vqa_visual(doc: dict) -> list[Image.Image]:
    """The picture of a question."""
    return _image("easy_vqa", doc)


def chart_visual(doc: dict) -> list[Image.Image]:
    """The chart of a question."""
    return _image("chart_reading", doc)


def chart_text(doc: dict, lmms_eval_specific_kwargs: dict) -> str:
    """The question, with what the task puts behind it."""
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]


def score_short(doc: dict, results: list[str]) -> dict[str, float]:
    """Exact match."""
    return {"exact_match": exact_match(results[0], doc["answer"])}


def score_long(doc: dict, results: list[str]) -> dict[str, float]:
    """Exact match and token F1."""
    return {**score_short(doc, results), "token_f1": token_f1(results[0], doc["answer"])}


def score_chart(doc: dict, results: list[str]) -> dict[str, float]:
    """Relaxed accuracy over all charts, and over those of the document's kind."""
    score = relaxed_match(results[0], doc["answer"])
    return {"relaxed_accuracy": score, f"relaxed_accuracy_{doc['kind']}": score}


def caption_visual(doc: dict) -> list[Image.Image]:
    """The picture of a DetailCaps document."""
    return [Image.open(io.BytesIO(doc["binary"])).convert("RGB")]


def caption_references(doc: dict) -> str:
    """The three reference captions as JSON, for BERTScore behind the run."""
    return json.dumps([doc[f"GT_Caption_{author}"] for author in ("GPT4O", "GPT4V", "Gemini15Pro")])


def score_caption(doc: dict, results: list[str]) -> dict[str, float]:
    """Words of the caption; its quality is BERTScore's to tell."""
    return {"words": float(len(results[0].split()))}
