"""What several test modules build: models with random weights, pictures, records, batches."""

import io
import json
import tarfile

import numpy as np
import torch

from diffusionvl import DiffusionVLForConditionalGeneration, RowDataset, cli
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.prompts import encode, question
from diffusionvl.data.record import Record
from diffusionvl.modeling.families import media_inputs, placeholder_ids

QUESTION = "what is the color of the shape?"


def build_picture(size, seed=0):
    """Coloured noise, [height, width, 3]."""
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def load_model(folder, **changes):
    """The block-diffusion model of a folder, in eval mode, with fields of its config changed."""
    config = DiffusionVLForConditionalGeneration.config_class.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return DiffusionVLForConditionalGeneration.from_pretrained(folder, config=config).eval()


def lively(folder, **changes):
    """A model whose answers vary: the random weights alone repeat a token or two, at one confidence."""
    return enliven(load_model(folder, **{"block_size": 4, **changes}))


def enliven(model):
    """Scales a model's weights so that its answers vary."""
    decoder = model.base.get_decoder()
    with torch.no_grad():
        for parameter in decoder.layers.parameters():
            if parameter.ndim == 2:
                parameter *= 3
        decoder.norm.weight *= 4
    return model


def conversation(*turns, name="test"):
    """A record from (question, answer, *picture paths) triples."""
    messages = []
    for asked, answer, *images in turns:
        parts = [{"type": "image", "image": path} for path in images]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": asked}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return Record(messages, name)


def some_records(pictures):
    """Multi-turn, several images, one image, text only: answers of one token up to several blocks."""
    long = "There is no circle and no triangle in it, and nothing else is drawn in the image."
    return [
        conversation((QUESTION, "yes", pictures[0]), ("is there a circle?", long), (QUESTION, "no", pictures[1])),
        conversation((QUESTION, long, pictures[1], pictures[2])),
        conversation(("what shape is in the image?", "circle")),
    ]


def collated(model, processor, records, layout=None, supervision="assistant", max_length=None):
    """The batch that training would see."""
    encoder = ConversationEncoder(processor, supervision, max_length)
    dataset = RowDataset(records, encoder, model.config, layout)
    return dataset.collate([dataset[index] for index in range(len(dataset))])


def prompts(processor, *questions):
    """A left-padded batch of (question, *picture paths) prompts."""
    return encode(processor, [question(text, paths) for text, *paths in questions])


def media_of(model, inputs):
    """The image and video inputs among a block-diffusion model's inputs, or those of a batch."""
    return {name: value for name, value in inputs.items() if name in media_inputs(model.base)}


def decode_slowly(model, inputs, new):
    """The surest token of the block, one a step, without a cache: every step runs the whole row."""
    size, mask_id = model.config.block_size, model.config.mask_token_id
    media = media_of(model, inputs)
    row, mask = inputs["input_ids"], inputs["attention_mask"]
    prompt, blocks = row.shape[1], model.clean_blocks(row, mask)
    while row.shape[1] < prompt + new:
        row = torch.cat([row, row.new_full((1, size), mask_id)], dim=1)
        blocks = torch.cat([blocks, (blocks.max() + 1).expand(1, size)], dim=1)
        for _ in range(size):
            with torch.no_grad():
                chances = model(row, torch.ones_like(row), block_ids=blocks, **media).logits[0].softmax(-1)
            chances[:, [mask_id, *placeholder_ids(model.base.config)]] = 0
            sure, drawn = chances.max(-1)
            place = sure.masked_fill(row[0] != mask_id, -1).argmax()
            row[0, place] = drawn[place]
        if model.config.clean_attention == "causal":  # tokens that are written see what stands before them alone
            blocks[:, -size:] += torch.arange(size)
        if torch.isin(row[0, prompt:], torch.tensor(model.generation_config.eos_token_ids)).any():
            break
    return row[0, prompt : prompt + new].tolist()


def cut(answer, model):
    """An answer up to its first end."""
    ends = (place for place, token in enumerate(answer) if token in model.generation_config.eos_token_ids)
    return answer[: next(ends, len(answer)) + 1]


def logits_of(model, batch, input_ids):
    """Logits of all tokens of a batch [B T, V]."""
    names = ("block_ids", "stream_ids", "document_ids", "position_ids", "media_twins", "pixel_values", "image_grid_thw")
    with torch.no_grad():
        return model(input_ids=input_ids, **{name: batch[name] for name in names}).logits.flatten(0, 1)


def gradients(model):
    """A copy of every gradient, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-5):
    """Equal up to `tolerance` of the largest expected value."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item() + 1e-12)


def run(capsys, *argv):
    """Exit code, stdout and stderr of one call."""
    capsys.readouterr()
    try:
        code = cli.main(list(argv))
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    return code, out, err


def losses(folder):
    """The losses that a run has logged, in order."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in log if "loss" in line]


def write_archive(path, files, mode="w"):
    """A tar archive of (name, content) pairs; what is not bytes is written as JSON."""
    with tarfile.open(path, mode) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)
