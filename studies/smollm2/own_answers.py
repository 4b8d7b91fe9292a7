"""`python -m studies.smollm2.own_answers MODEL --out DIR`: a language model's own answers as training records.

No outside data is needed: prompts are composed of things and questions, and the autoregressive model that is to be
translated answers them, greedily. Its translation then learns to say what the model said; the things that are held out
measure how often it does.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from diffusionvl.checkpoints.loading import load_model, load_processor
from diffusionvl.commands.command_line import Parser
from diffusionvl.data.sources.json_records import write_jsonl
from studies.quickstart.contest import Contender, prompts
from studies.quickstart.easy_vqa import RawRecord

QUESTIONS = (
    "What is {}? Answer in one short sentence.",
    "Write one sentence about {}.",
    "What color is {}? Answer with one word.",
    "Where can you find {}? Answer briefly.",
    "What is {} made of? Answer briefly.",
    "Write a short title for a story about {}.",
    "Complete the sentence: {} is used to",
)
HELD_OUT = 8  # every eighth thing
MAX_NEW_TOKENS = 40
BATCH_SIZE = 64


def questions(held_out: bool) -> list[str]:
    """Writes the questions about all things that are held out, or about all others."""
    things = Path(__file__).with_name("things.txt").read_text(encoding="utf-8").splitlines()
    about = [thing for index, thing in enumerate(things) if (index % HELD_OUT == 0) == held_out]
    return [question.format(thing) for thing in about for question in QUESTIONS]


def answered(model_name: str, texts: list[str], name: str) -> Iterator[RawRecord]:
    """Yields prompts with the model's own answers; an answer that has not ended after 40 tokens is left out.

    Args:
        model_name: AR language model: a folder or a hub id.
        texts: The prompts.
        name: Beginning of the records' ids.
    """
    # In bf16, in which its translation is measured: in fp32 it would write other answers to a third of the prompts.
    model, processor = load_model(model_name, torch.bfloat16).eval(), load_processor(model_name)
    contender = Contender(name, model, {"max_new_tokens": MAX_NEW_TOKENS})
    for begin in range(0, len(texts), BATCH_SIZE):
        records: list[RawRecord] = [
            {
                "id": f"{name}-{begin + index}",
                "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}],
            }
            for index, text in enumerate(texts[begin : begin + BATCH_SIZE])
        ]
        generated = contender.answer(prompts(processor, records))
        for record, ids, length in zip(records, generated.new, generated.lengths.tolist(), strict=True):
            answer = processor.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
            if int(ids[length - 1]) == processor.tokenizer.eos_token_id and answer:
                record["messages"].append(_message("assistant", answer))
                yield record


def _message(role: str, text: str) -> RawRecord:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def main(argv: list[str] | None = None) -> int:
    """Writes `train.jsonl` and `held_out.jsonl`.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m studies.smollm2.own_answers", description="Let a model answer prompts.")
    parser.add_argument("model", help="AR language model: a folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--limit", type=int, help="first N prompts of each kind only")
    return parser.run(_write, argv)


def _write(arguments: argparse.Namespace) -> None:
    """Answers the prompts and writes both files."""
    for name, held_out in (("train", False), ("held_out", True)):
        texts = questions(held_out)[: arguments.limit]
        records = list(answered(arguments.model, texts, name))
        write_jsonl(records, arguments.out / f"{name}.jsonl")
        print(f"{arguments.out / name}.jsonl: {len(records)} answers that ended, of {len(texts)} prompts")


if __name__ == "__main__":
    sys.exit(main())
