"""Functions that the task files of this folder call: documents to prompts, answers to scores."""

import io
import json
from pathlib import Path

from PIL import Image

from diffusionvl.evaluation.scores import exact_match, token_f1

DATA = Path(__file__).parents[2] / "outputs" / "eval-data"


def easy_vqa_visual(doc: dict) -> list[Image.Image]:
    """Opens the picture of a question."""
    with Image.open(DATA / "easy_vqa" / doc["image"]) as file:
        return [file.convert("RGB")]


def score_short(doc: dict, results: list[str]) -> dict[str, float]:
    """Scores by exact match."""
    return {"exact_match": exact_match(results[0], doc["answer"])}


def score_long(doc: dict, results: list[str]) -> dict[str, float]:
    """Scores by exact match and token F1."""
    return {**score_short(doc, results), "token_f1": token_f1(results[0], doc["answer"])}


def score_json(doc: dict, results: list[str]) -> dict[str, float]:
    """Scores by whether the answer is JSON of the right form, and by whether it says what is right."""
    expected = json.loads(doc["answer"])
    try:
        found = json.loads(results[0])
    except ValueError:
        found = None
    valid = isinstance(found, dict) and {key: type(one) for key, one in found.items()} == {
        key: type(one) for key, one in expected.items()
    }
    return {"valid": float(valid), "exact_match": float(found == expected)}


def caption_visual(doc: dict) -> list[Image.Image]:
    """Opens the picture of a DetailCaps document."""
    return [Image.open(io.BytesIO(doc["binary"])).convert("RGB")]


def caption_references(doc: dict) -> str:
    """Returns the three reference captions as JSON, for BERTScore after the run."""
    return json.dumps([doc[f"GT_Caption_{author}"] for author in ("GPT4O", "GPT4V", "Gemini15Pro")])


def score_caption(doc: dict, results: list[str]) -> dict[str, float]:
    """Counts the words of the caption; BERTScore judges its quality."""
    return {"words": float(len(results[0].split()))}
