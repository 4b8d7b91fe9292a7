"""What a training step costs: our layout (clean stream + noisy responses) against the reference's (two full streams).

Both run the same random model on the same rows with the same masked tokens, in turn, in one process. The baseline is
the reference's step: the whole row twice, and the LM head on every token. The losses must agree.

    python benchmarks/train_step.py --json benchmarks/results/train_step.json
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration
from diffusionvl.data.collate import collate
from diffusionvl.data.streams import build_row
from diffusionvl.modeling.block_masks import block_grid
from diffusionvl.modeling.families import sequential_positions
from diffusionvl.objective.loss import IGNORED, cross_entropy

VOCABULARY, MASK, END, PAD, IMAGE = 32_000, 31_999, 31_998, 31_997, 31_996
PROMPT = 40  # text tokens of a prompt
BASELINE = "two_stream"


def build_model(hidden: int, layers: int, block_size: int) -> DiffusionVLForConditionalGeneration:
    """A random Qwen2.5-VL of about 45 M parameters, with a vision tower that only the clean stream feeds."""
    torch.manual_seed(0)
    base = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": VOCABULARY,
                "hidden_size": hidden,
                "intermediate_size": hidden * 11 // 4,
                "num_hidden_layers": layers,
                "num_attention_heads": hidden // 64,
                "num_key_value_heads": hidden // 128,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
                "bos_token_id": None,
                "eos_token_id": END,
                "pad_token_id": PAD,
            },
            vision_config={
                "depth": 4,
                "hidden_size": 256,
                "intermediate_size": 688,
                "num_heads": 4,
                "out_hidden_size": hidden,
                "fullatt_block_indexes": [3],
            },
            image_token_id=IMAGE,
            tie_word_embeddings=True,
        )
    )
    config = DiffusionVLConfig(
        base.config,
        block_size=block_size,
        mask_token_id=MASK,
        position_mode="sequential",
        block_origin="absolute",
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return DiffusionVLForConditionalGeneration(config, base).train()


def build_batch(layout: str, response: int, side: int, block_size: int) -> dict[str, torch.Tensor]:
    """One row: an image of side x side patches, a prompt, a response that ends at a block edge."""
    generator = torch.Generator().manual_seed(1)
    image_tokens = (side // 2) ** 2
    length = -(-(image_tokens + PROMPT + response) // block_size) * block_size
    ids = torch.randint(0, IMAGE, (length,), generator=generator)
    ids[4 : 4 + image_tokens] = IMAGE
    labels = ids.clone()
    labels[: image_tokens + PROMPT] = IGNORED
    positions = sequential_positions(torch.ones(1, length), 3)[:, 0]
    row = build_row(ids, labels, block_grid(length, block_size), positions, block_size, END, layout)
    batch = collate([[row]], PAD, [IMAGE])
    batch["pixel_values"] = torch.randn(side * side, 3 * 2 * 14 * 14, generator=generator)
    batch["image_grid_thw"] = torch.tensor([[1, side, side]])
    return batch


def step(model: DiffusionVLForConditionalGeneration, batch: dict[str, torch.Tensor], layout: str) -> float:
    """Forward and backward with every second supervised token masked; the loss."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "rows")}
    labels = batch["labels"].flatten()
    masked = (labels != IGNORED).nonzero()[::2, 0]
    inputs["input_ids"] = inputs["input_ids"].flatten().index_fill(0, masked, MASK).view_as(inputs["input_ids"])
    if layout == BASELINE:  # the reference computes logits of the whole noisy stream and selects afterwards
        length = labels.numel() // 2
        logits = model(**inputs, logits_to_keep=length).logits[0].float()[masked - length]
    else:
        logits = model(**inputs, token_indices=masked).logits
    loss = cross_entropy(logits, labels[masked]).mean()
    loss.backward()
    model.zero_grad()
    return loss.item()


def measure(
    model: DiffusionVLForConditionalGeneration, response: int, side: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds (median), FLOPs and tokens of a step in both layouts, which take turns."""
    layouts = ("response_only", BASELINE)
    batches = {layout: build_batch(layout, response, side, model.config.block_size) for layout in layouts}
    found: dict[str, dict[str, float]] = {}
    for layout, batch in batches.items():  # also warms up
        with FlopCounterMode(display=False) as counter:
            loss = step(model, batch, layout)
        found[layout] = {
            "loss": loss,
            "tflops": counter.get_total_flops() / 1e12,
            "tokens": float(batch["input_ids"].numel()),
        }
    seconds: dict[str, list[float]] = {layout: [] for layout in layouts}
    for _ in range(repeats):
        for layout, batch in batches.items():
            start = time.perf_counter()
            step(model, batch, layout)
            seconds[layout].append(time.perf_counter() - start)
    for layout in layouts:
        found[layout]["seconds"] = statistics.median(seconds[layout])
    torch.testing.assert_close(found["response_only"]["loss"], found[BASELINE]["loss"], rtol=1e-5, atol=0)
    return found


def main() -> None:
    """Measures rows of 324 image tokens (one 504 x 504 picture) with responses of 40, 150 and 400 tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--block-size", type=int, default=8)
    parser.add_argument("--side", type=int, default=36, help="patches a side of the picture (36: 324 image tokens)")
    parser.add_argument("--responses", type=int, nargs="+", default=[40, 150, 400], help="tokens of a response")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    model = build_model(args.hidden, args.layers, args.block_size)
    rows = []
    print(f"{model.num_parameters():,} parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("response  tokens ours/reference  TFLOP ours/reference  seconds ours/reference  reference/ours")
    for response in args.responses:
        found = measure(model, response, args.side, args.repeats)
        ours, reference = found["response_only"], found[BASELINE]
        ratio = reference["seconds"] / ours["seconds"]
        rows.append({"response": response, "ours": ours, "reference": reference, "speedup": ratio})
        print(
            f"{response:8d}  {ours['tokens']:10.0f}/{reference['tokens']:<10.0f} "
            f"{ours['tflops']:9.3f}/{reference['tflops']:<11.3f} {ours['seconds']:10.2f}/{reference['seconds']:<11.2f} "
            f"{ratio:13.2f}x"
        )
    if args.json:
        machine = {
            "date": date.today().isoformat(),
            "processor": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "parameters": model.num_parameters(),
        }
        args.json.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
