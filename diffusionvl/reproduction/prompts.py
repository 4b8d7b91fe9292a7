"""`python -m diffusionvl.reproduction.prompts MODEL --out DIR`: a language model's own answers as training records.

No outside data is needed: prompts are composed from things and questions, and the autoregressive model that is to be
translated answers them, greedily. Its translation then learns to say what the model said; things that are held out
measure how often it does.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from diffusionvl.checkpoint import load_model, load_processor
from diffusionvl.command_line import Parser, fail
from diffusionvl.quickstart.easy_vqa import Record, write_jsonl
from diffusionvl.quickstart.evaluate import encode, generate

QUESTIONS = (
    "What is {}? Answer in one short sentence.",
    "Write one sentence about {}.",
    "What color is {}? Answer with one word.",
    "Where can you find {}? Answer briefly.",
    "What is {} made of? Answer briefly.",
    "Write a short title for a story about {}.",
    "Complete the sentence: {} is used to",
)
THINGS = (
    "an apple, an anchor, an ant, an arrow, a bag, a ball, a balloon, a banana, a basket, a bed, a bee, a bell, a belt, "
    "a bench, a bicycle, a bird, a blanket, a boat, a bone, a book, a boot, a bottle, a bowl, a box, bread, a bridge, "
    "a broom, a brush, a bucket, a bus, butter, a button, a cake, a camel, a camera, a candle, a car, a carpet, a cat, "
    "a chair, cheese, a clock, a cloud, a coat, coffee, a coin, a comb, a computer, a cow, a crown, a cup, a curtain, "
    "a desk, a diamond, a dog, a door, a dress, a drum, a duck, an eagle, an egg, an elephant, an engine, a feather, "
    "a fence, a fish, a flag, a flower, a flute, a forest, a fork, a fox, a frog, a garden, a gate, glass, a glove, "
    "gold, grass, a guitar, a hammer, a harbor, a hat, honey, a horse, a house, ice, an island, a jacket, a kettle, "
    "a key, a kite, a knife, a ladder, a lake, a lamp, a leaf, a lemon, a letter, a library, a lion, a lock, a map, "
    "a market, milk, a mirror, the moon, a mountain, a mouse, a museum, a needle, a nest, a net, the ocean, an onion, "
    "an orange, an owl, paper, a pear, a pen, a pencil, a piano, a pillow, a plate, a pocket, a potato, a rabbit, "
    "a radio, rain, a ring, a river, a road, a robot, a rocket, a rope, a rose, salt, sand, a school, scissors, "
    "a shell, a ship, a shoe, silk, silver, snow, soap, a sock, a spoon, a star, a stone, sugar, the sun, a sword, "
    "a table, tea, a telephone, a tent, a tiger, a tower, a toy, a train, a tree, a truck, a turtle, an umbrella, "
    "a violin, a wall, a watch, water, a wheel, a whistle, the wind, a window, wine, a wolf, wood, wool"
).split(", ")
HELD_OUT = 8  # every eighth thing
MAX_NEW_TOKENS = 40
BATCH_SIZE = 64


def prompts(held_out: bool) -> list[str]:
    """The questions about all things that are held out, or about all others."""
    chosen = [thing for index, thing in enumerate(THINGS) if (index % HELD_OUT == 0) == held_out]
    return [question.format(thing) for thing in chosen for question in QUESTIONS]


def answered(model_name: str, texts: list[str], name: str) -> Iterator[Record]:
    """Prompts with the model's own answers; an answer that has not ended after 40 tokens is left out.

    Args:
        model_name: AR language model: a folder or a hub id.
        texts: Prompts.
        name: Of the records.
    """
    model, processor = load_model(model_name).eval(), load_processor(model_name)
    for begin in range(0, len(texts), BATCH_SIZE):
        records: list[Record] = [
            {"id": f"{name}-{begin + index}", "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}
            for index, text in enumerate(texts[begin : begin + BATCH_SIZE])
        ]
        generated = generate(model, encode(processor, records), max_new_tokens=MAX_NEW_TOKENS)
        for record, ids, length in zip(records, generated.new, generated.lengths.tolist(), strict=True):
            answer = processor.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
            if int(ids[length - 1]) == processor.tokenizer.eos_token_id and answer:
                record["messages"].append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
                yield record


def main(argv: list[str] | None = None) -> int:
    """Writes `train.jsonl` and `held_out.jsonl`.

    Returns:
        0, or 2 for an input that can not be used.
    """
    parser = Parser(prog="python -m diffusionvl.reproduction.prompts", description="Let a model answer prompts.")
    parser.add_argument("model", help="AR language model: a folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--limit", type=int, help="first N prompts of each kind only")
    arguments = parser.parse_args(argv)
    try:
        for name, held_out in (("train", False), ("held_out", True)):
            texts = prompts(held_out)[: arguments.limit]
            records = list(answered(arguments.model, texts, name))
            write_jsonl(records, arguments.out / f"{name}.jsonl")
            print(f"{arguments.out / name}.jsonl: {len(records)} answers that ended, of {len(texts)} prompts")
    except (OSError, ValueError) as error:
        return fail(parser.prog, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
