"""Every decoder-only model type of transformers: proved by the family checks, or refused with a true reason.

`bash scripts/sweep_families.sh` builds a tiny random model of each type, translates it and compares it with the stock
model. A type runs in a process of its own with a time limit, results are appended as they come, and a second call goes
on where the first one stopped. `--page docs/models.md` writes the table between the page's marks.
"""

import argparse
import json
import multiprocessing
import re
import resource
import tempfile
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from helpers import cut, decode_slowly, prompts
from tiny_families import TEXT_TEMPLATE, build_tokenizer
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from diffusionvl import DiffusionVLConfig, DiffusionVLForConditionalGeneration, save_checkpoint, translate
from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.checkpoints.text_processor import TextProcessor
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.families import auto_class
from diffusionvl.translation.suitability import check_config
from diffusionvl.translation.trial import check_model

PROVED, REFUSED, WRONG, UNBUILT = VERDICTS = ("proved", "refused", "wrong", "not built")
MEMORY = 12 * 2**30  # address space of one process: a type that is not small stops there
BEGIN, END = "<!-- sweep: begin -->", "<!-- sweep: end -->"
# Sizes by the names that configs have for them. A name that a config does not have is left out.
WIDTHS = ("hidden_size", "n_embd", "d_model", "embed_dim", "dim", "word_embed_proj_dim", "attention_hidden_size")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size", "mlp_hidden_size")
INNER += ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads", "decoder_attention_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "keep_window_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "experts_per_token", "moe_k", "moe_topk", "top_k_experts")
GROUPS = ((WIDTHS, 32), (INNER, 48), (LAYERS, 4), (HEADS, 4), (KEY_VALUE_HEADS, 2), (POSITIONS, 512), (WINDOWS, 6))
SIZES = {name: size for names, size in (*GROUPS, (EXPERTS, 4), (CHOSEN, 2)) for name in names}
SIZES |= {
    "image_size": 16,
    "patch_size": 8,
    "depth": 2,
    "out_hidden_size": 32,
    "head_dim": 8,
    "initializer_range": 0.2,
    "n_group": 1,
    "topk_group": 1,
    "rotary_dim": 8,
}
LATENT = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16}
LATENT |= {"head_dim": 4, "num_key_value_heads": 4}
# What a type needs besides.
CHANGES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("sweep_sizes.json").read_text(encoding="utf-8")
)


def small_config(model_type: str) -> PreTrainedConfig:
    """A config of this type with sizes that take no time."""
    tokenizer = build_tokenizer(TEXT_TEMPLATE)
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id) | {
        "vocab_size": len(tokenizer) + 3
    }
    return shrunk(CONFIG_MAPPING[model_type](), tokens | {"pad_token_id": tokenizer.pad_token_id})


def shrunk(config: PreTrainedConfig, tokens: dict[str, Any]) -> PreTrainedConfig:
    """The same kind of config, and of its parts, in small."""
    known = config.to_dict()
    sizes: dict[str, Any] = {name: size for name, size in SIZES.items() if type(known.get(name)) in (int, float)}
    sizes |= {name: size for name, size in tokens.items() if name in known}
    if "kv_lora_rank" in known:  # multi-head latent attention
        sizes |= LATENT
    of_media = [name for name in known if name.endswith(("_token_id", "_token_index")) and name not in tokens]
    sizes |= {name: tokens["vocab_size"] - 4 for name in of_media if type(known[name]) is int}
    rope = known.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
        if "mrope_section" in {*rope, *getattr(config, "ignore_keys_at_rope_validation", ())}:
            sizes["rope_parameters"]["mrope_section"] = [2, 1, 1]
    for part in type(config).sub_configs:
        if isinstance(getattr(config, part, None), PreTrainedConfig):
            sizes[part] = shrunk(getattr(config, part), tokens).to_dict()
    return type(config)(**sizes | CHANGES.get(config.model_type, {}))


def build(model_type: str) -> tuple[Any, Any]:
    """A tiny model of this type and its tokenizer."""
    torch.manual_seed(0)
    config = small_config(model_type)
    model = auto_class(config).from_config(config)
    for parameter in model.parameters():  # some initialise to zeros what training would change
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = build_tokenizer(TEXT_TEMPLATE)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.eval()(input_ids=torch.arange(20, 30)[None])  # sizes that do not fit together show here
    return model, TextProcessor(tokenizer)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of logits, relative to their spread."""
    if not bool(expected.isfinite().all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.std())


@torch.no_grad()
def oracles(model: DiffusionVLForConditionalGeneration, processor: Any, base: Any) -> dict[str, float]:
    """What the mask makes of a model, against the stock model and against itself without cache or second stream."""
    size, mask_id = model.config.block_size, model.config.mask_token_id
    ids = torch.randint(8, 300, (1, 10 * size), generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(ids.shape[1])[None]
    found = {"causal": error(model(ids, block_ids=tokens).logits, base(input_ids=ids).logits)}
    clean, noisy = ids, torch.full_like(ids[:, -size:], mask_id)
    in_place = model(torch.cat([clean[:, :-size], noisy], dim=1), block_ids=tokens // size).logits[:, -size:]
    positions = model.position_ids(ids, torch.ones_like(ids), {})
    behind = model(
        torch.cat([clean, noisy], dim=1),
        block_ids=torch.cat([tokens, tokens[:, -size:]], dim=1) // size,
        stream_ids=torch.cat([torch.zeros_like(clean), torch.ones_like(noisy)], dim=1),
        position_ids=torch.cat([positions, positions[..., -size:]], dim=-1),
    ).logits[:, -size:]
    found["two streams"] = error(behind, in_place)
    changed = clean.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 300
    found["sees ahead"] = error(
        model(changed, block_ids=tokens // size).logits[:, -size:-1],
        model(clean, block_ids=tokens // size).logits[:, -size:-1],
    )
    questions = [("no?",), ("is there a circle, a triangle or a square in the image, and what color does it have?",)]
    together = model.generate(**prompts(processor, *questions), max_new_tokens=9)
    width = prompts(processor, *questions)["input_ids"].shape[1]
    wrong = 0
    for question, row in zip(questions, together[:, width:].tolist(), strict=True):
        inputs = prompts(processor, question)
        wrong += cut(decode_slowly(model, inputs, 9), model) != cut(row, model)
    found["decoding"] = float(wrong)
    return found


def prove(model_type: str) -> dict[str, Any]:
    """The verdict on one type: proved, refused or wrong, with the reason or the figures."""
    try:
        base, processor = build(model_type)
    except Exception as failure:
        try:
            check_config(CONFIG_MAPPING[model_type](), "base")
        except UserError as refusal:
            return {"verdict": REFUSED, "reason": str(refusal).split(": ", 1)[1]}
        except Exception as own:
            return {"verdict": UNBUILT, "reason": _last_line(own)}
        return {"verdict": UNBUILT, "reason": _last_line(failure)}
    reads_images = auto_class(base.config) is not transformers.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(f"{folder}/base")
        processor.save_pretrained(f"{folder}/base")
        try:
            base = Checkpoint(f"{folder}/base").model().eval()
            if reads_images:
                check_config(base.config, "base")
                model = wrapped(base, processor)
                check_model(model, "base")
            else:
                model, processor = translate(f"{folder}/base", block_size=4)
        except UserError as refusal:
            return {"verdict": REFUSED, "reason": str(refusal).split(": ", 1)[1], "holds": holds(base, processor)}
        save_checkpoint(model, processor, f"{folder}/out")
        model.generation_config.update(remasking="low_confidence_static", denoising_steps=4)
        found = oracles(model, processor, base)
        inputs = prompts(processor, ("is there a circle?",))
        with torch.no_grad():
            loaded = DiffusionVLForConditionalGeneration.from_pretrained(f"{folder}/out").eval()
            found["saved"] = error(loaded(**inputs).logits, model(**inputs).logits)
    ahead = found.pop("sees ahead")
    right = max(found.values()) < 1e-3 and ahead > 1e-5
    reads = "text rows of a model with images" if reads_images else "text"
    return {"verdict": PROVED if right else WRONG, "errors": found, "ahead": ahead, "reads": reads}


def wrapped(base: Any, processor: Any) -> DiffusionVLForConditionalGeneration:
    """A translation without the checks, of a base whose processor is not at hand."""
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    config = DiffusionVLConfig(
        base.config,
        block_size=4,
        mask_token_id=tokenizer.mask_token_id,
        response_header_ids=tokenizer("<|im_start|>assistant\n")["input_ids"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return DiffusionVLForConditionalGeneration(config, base).eval()


def holds(base: Any, processor: Any) -> str:
    """What the oracles say of a model that is refused, for whoever looks for wrong refusals."""
    try:
        return str(oracles(wrapped(base, processor), processor, base))
    except Exception as failure:
        return _last_line(failure)


def _last_line(failure: Exception) -> str:
    return traceback.format_exception_only(failure)[-1].strip()[:300]


def model_types() -> list[str]:
    """Model types of the auto mappings whose models are decoders alone."""
    names = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    return sorted(name for name in names if name in CONFIG_MAPPING)


def in_a_process(model_type: str, seconds: float) -> dict[str, Any]:
    """`prove` in a process of its own, which may crash, or hang for longer than it may."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sender.send(prove(model_type))

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(seconds) else {"verdict": UNBUILT, "reason": f"over {seconds:.0f} s"}
    except EOFError:
        found = {"verdict": WRONG, "reason": "the process died"}
    process.kill()
    process.join()
    return found


def write_page(page: Path, results: list[dict[str, Any]]) -> None:
    """Writes what was found into a page, between its marks."""
    groups: dict[tuple[str, str], list[str]] = {}
    for result in results:
        key = (result["verdict"], result.get("reads") or why(result))
        groups.setdefault(key, []).append(result["type"])
    count = {verdict: sum(result["verdict"] == verdict for result in results) for verdict in VERDICTS}
    lines = [
        f"Of {len(results)} model types, {count[PROVED]} are proved, {count[REFUSED]} are refused, {count[WRONG]} are "
        f"accepted and wrong, and {count[UNBUILT]} could not be built small "
        f"(`bash scripts/sweep_families.sh`, {date.today()}, "
        f"transformers {transformers.__version__}, torch {torch.__version__}).",
        "",
        "| verdict | why | model types |",
        "|---|---|---|",
    ]
    for (verdict, reason), types in sorted(groups.items(), key=lambda group: VERDICTS.index(group[0][0])):
        lines.append(f"| {verdict} | {reason} | {', '.join(f'`{each}`' for each in sorted(types))} |")
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def why(result: dict[str, Any]) -> str:
    """The reason of a refusal without what is of one type alone, and what kept a type from being built."""
    if result["verdict"] == UNBUILT:
        return "its config in small, or a package, is missing here"
    reason = str(result.get("reason", result.get("errors"))).split("cannot be translated: ")[-1]
    reason = re.sub(r"^model type '[^']*' ", "it ", reason)
    return re.sub(r" \(.*\)$|; give .*$", "", reason)


def main() -> None:
    """Proves types one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all that have no result yet by default")
    parser.add_argument("--out", type=Path, required=True, help="results, a line for each type")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one type")
    parser.add_argument("--page", type=Path, help="page whose table is to be written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no threads of its own
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    results = {result["type"]: result for result in map(json.loads, lines)}
    for model_type in arguments.types or [each for each in model_types() if each not in results]:
        result = {"type": model_type, **in_a_process(model_type, arguments.timeout)}
        results[model_type] = result
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(model_type, result["verdict"], str(result.get("reason", result.get("errors")))[:200], flush=True)
    if arguments.page:
        write_page(arguments.page, list(results.values()))


if __name__ == "__main__":
    main()
