"""Videos in records and prompts.

Reading them needs torchvision, which is not installed where the tests run: a stand-in of a few lines cuts frames into
the same patches. Where it is installed, qwen-vl-utils and the family's own video processor are tested, too.
"""

import copy
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from helpers import assert_same, collated, cut, decode_slowly, gradients, lively, media_of
from PIL import Image
from transformers import Qwen2_5_VLProcessor
from transformers.video_utils import VideoMetadata

from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.data import videos as module
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.data.prompts import encode, question
from diffusionvl.data.record import DataError, Record, Video
from diffusionvl.data.videos import REMEDY, video_inputs
from diffusionvl.evaluation.answerer import Answerer, Question
from diffusionvl.evaluation.questions import build_prompt
from diffusionvl.evaluation.settings import resolve
from diffusionvl.infer import main as infer
from diffusionvl.objective.loss import IGNORED
from diffusionvl.training.parts import Parts
from diffusionvl.training.samples import answer as answer_of

IMAGE_BRANCH = "{%- if part['type'] == 'image' -%}"
VIDEO_BRANCH = """\
{%- if part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'image' -%}"""
real = pytest.mark.skipif(
    any(find_spec(package) is None for package in module.PACKAGES), reason="torchvision or qwen-vl-utils is missing"
)


class VideoPart:
    """Cuts frames into patches as Qwen's video processor does: two frames of a patch lie in one row."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")
    temporal_patch_size = 2

    def __init__(self, images):
        self.patch_size, self.merge_size = images.patch_size, images.merge_size

    def __call__(self, videos, video_metadata, do_sample_frames, **settings):
        assert not do_sample_frames
        pixels, grids = [], []
        side, merge = self.patch_size, self.merge_size
        for frames in videos:
            steps, height, width = len(frames) // 2, frames.shape[2] // side, frames.shape[3] // side
            grids.append([steps, height, width])
            patches = (frames / 127.5 - 1).view(
                *(steps, 2, 3), *(height // merge, merge, side), *(width // merge, merge, side)
            )
            pixels.append(patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(steps * height * width, -1))
        return {
            "pixel_values_videos": torch.cat(pixels),
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": [VideoMetadata(**one) for one in video_metadata],
        }


def frames_of(video, patch_size, name):
    """Noise, as many frames as the settings ask for, in the shape that the path tells."""
    count, size = int(video.settings.get("nframes", 4)), int(video.source[0])
    noise = torch.rand(count, 3, 32, 16 * size, generator=torch.Generator().manual_seed(size)) * 255
    return noise, {"fps": 30.0, "frames_indices": [15 * n for n in range(count)], "total_num_frames": 15 * count}


@pytest.fixture
def video_processor(translated_dir, monkeypatch):
    """The processor with a video part, and a template that knows videos."""
    processor = load_processor(translated_dir)
    processor.chat_template = processor.chat_template.replace(IMAGE_BRANCH, VIDEO_BRANCH)
    assert "video" in processor.chat_template
    parts = [*type(processor).get_attributes(), "video_processor"]
    methods = {"get_attributes": classmethod(lambda cls: parts), "__call__": Qwen2_5_VLProcessor.__call__}
    whole = copy.copy(processor)
    whole.__class__ = type("WithVideos", (type(processor),), methods)
    whole.video_processor = VideoPart(processor.image_processor)
    monkeypatch.setattr(module, "read_video", frames_of)
    monkeypatch.setattr(module, "find_spec", lambda package: package)
    return whole


def record(*contents):
    """Questions, each with what stands before it, and the answer `yes` to each."""
    messages = []
    for content in contents:
        parts = [*content, {"type": "text", "text": "is there a circle?"}]
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": "yes"}]})
    return Record(messages, "test")


def video(path, **settings):
    return {"type": "video", "video": Video(path, settings)}


def test_a_video_becomes_tokens_and_media(video_processor, pictures):
    image = {"type": "image", "image": pictures[2]}
    encoded = ConversationEncoder(video_processor).encode(record([video("2.mp4"), image], [video("3.mp4", nframes=6)]))
    video_id = video_processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert encoded.media["video_grid_thw"].tolist() == [[2, 4, 4], [3, 4, 6]]
    assert encoded.media["second_per_grid_ts"].tolist() == [1.0, 1.0]  # two frames of a second, two a step
    assert encoded.media["pixel_values_videos"].shape == (2 * 4 * 4 + 3 * 4 * 6, 3 * 2 * 8 * 8)
    assert int((encoded.input_ids == video_id).sum()) == (2 * 4 * 4 + 3 * 4 * 6) // 4
    assert encoded.images == 1 + 2 + 3
    measured = ConversationEncoder(video_processor).encode(record([video("2.mp4"), image]), render=False)
    assert measured.media == {}


def test_rows_of_videos_train_as_two_streams_do(video_processor, translated_dir, pictures):
    """Positions of videos tell seconds (M-RoPE); gradients reach the vision tower."""
    model = lively(translated_dir).train()
    image = {"type": "image", "image": pictures[1]}
    records = [record([video("2.mp4"), image], [video("3.mp4")]), record([image]), record([])]
    results = []
    for layout in ("response_only", "two_stream"):
        batch = collated(model, video_processor, records, layout)
        media = media_of(model, batch)
        ids = batch["input_ids"].masked_fill(batch["labels"] != IGNORED, model.config.mask_token_id)
        tags = {name: batch[name] for name in ("block_ids", "stream_ids", "document_ids", "position_ids")}
        supervised = (batch["labels"] != IGNORED).flatten()
        logits = model(ids, **tags, **media, token_indices=supervised.nonzero()[:, 0]).logits
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten()[supervised])
        loss.backward()
        results.append((loss, gradients(model)))
    (loss, found), (expected_loss, expected) = results
    assert_same(loss, expected_loss)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6 * largest)
    assert any(Parts(model).of(name) == "vision_tower" and gradient.any() for name, gradient in found.items())
    positions = collated(model, video_processor, records[:1])["position_ids"]
    assert not torch.equal(positions[0], positions[1])


def test_an_answer_about_a_video_is_that_of_a_loop_without_a_cache(video_processor, translated_dir, pictures):
    model = lively(translated_dir)
    answers = []
    for path in ("2.mp4", "3.mp4"):
        images = [Image.open(pictures[1]).convert("RGB")]
        inputs = encode(video_processor, [question("is there a circle?", images, [Video(path, {"nframes": 4})])])
        answer = model.generate(**inputs, max_new_tokens=9)[0, inputs["input_ids"].shape[1] :].tolist()
        answers.append(cut(answer, model))
        assert answers[-1] == cut(decode_slowly(model, inputs, 9), model)
    assert answers[0] != answers[1]


def test_tables_of_answers_show_videos(video_processor, translated_dir):
    model = lively(translated_dir)
    samples = [answer_of(model, video_processor, record([video(path)])) for path in ("2.mp4", "3.mp4")]
    assert [sample.question for sample in samples] == ["is there a circle?"] * 2
    assert samples[0].denoising != samples[1].denoising


def test_a_benchmark_asks_about_videos_images_and_nothing(video_processor, translated_dir, pictures):
    model = lively(translated_dir)
    answerer = Answerer(model, video_processor)
    clips = [{"type": "video", "url": path} for path in ("2.mp4", "3.mp4")]
    image = {"type": "image", "url": pictures[1]}
    questions = []
    for number, shown in enumerate([[clips[0]], [], [image], clips, [clips[0], image]]):
        content = [*shown, {"type": "text", "text": "is there a circle?"}]
        messages = [{"role": "user", "content": content}]
        prompt = partial(build_prompt, messages, f"shapes, document {number}", frames={"nframes": 4})
        questions.append(Question("shapes", number, prompt))
    decoding = resolve(answerer.kind, model.config.block_size, {}, {"max_new_tokens": 8})
    together = [one for _, one in sorted(answerer.answers(questions, decoding, 5), key=lambda pair: pair[0])]
    for asked, one in zip(questions, together, strict=True):
        ((_, alone),) = answerer.answers([asked], decoding, 5)
        assert (one.text, one.input_tokens, one.cost.tokens) == (alone.text, alone.input_tokens, alone.cost.tokens)
    text = together[1].input_tokens
    patches = [one.input_tokens - text for one in together]
    assert [patches[0], patches[3]] == [2 * 4 + 2, (2 * 4 + 2) + (2 * 6 + 2)]  # and the tokens around a video
    assert patches[4] == patches[0] + patches[2]


def test_videos_that_can_not_be_read_are_one_clear_error(video_processor, processor, monkeypatch):
    message = [video("2.mp4")]
    with pytest.raises(DataError, match=r"test: video '2.mp4': videos are read for .*Qwen-VL families alone"):
        ConversationEncoder(processor).encode(record(message))
    template = video_processor.chat_template
    video_processor.chat_template = template.replace("<|video_pad|>", "")
    with pytest.raises(DataError, match=r"test: the chat template writes 0 places for 1 video\(s\)"):
        ConversationEncoder(video_processor).encode(record(message))
    video_processor.chat_template = template
    answer = {"role": "assistant", "content": message}
    with pytest.raises(DataError, match=r"test: an assistant turn holds video '2.mp4'; move it"):
        ConversationEncoder(video_processor).encode(Record([*record([]).messages, answer], "test"))
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(DataError, match=r"test: video of 2 frames from '1.png' on: videos need torchvision"):
        ConversationEncoder(video_processor).encode(record([video(("1.png", "2.png"))]))
    assert video_inputs([], "", processor, "test") == {}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--video", "gone.mp4"], ["--video 'gone.mp4': no such file"]),
        (["--fps", "0"], ["--fps 0.0: give a number above 0"]),
        (["--fps", "nan"], ["--fps nan: give a number above 0"]),
        (["--max-frames", "1"], ["--max-frames 1: give 2 or more"]),
    ],
)
def test_flags_of_infer(translated_dir, capsys, arguments, parts):
    assert infer(["--model", translated_dir, "--prompt", "q", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in parts)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_infer_names_the_packages_that_videos_need(translated_dir, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"")
    assert infer(["--model", translated_dir, "--prompt", "q", "--video", str(tmp_path / "a.mp4")]) == 2
    assert REMEDY in capsys.readouterr().err


@real
def test_frames_are_read_by_qwen_vl_utils(translated_dir, tmp_path, capsys):
    """Frames in files: decoding a film needs a decoder as well."""
    processor = load_processor(translated_dir)
    processor.chat_template = processor.chat_template.replace(IMAGE_BRANCH, VIDEO_BRANCH)
    paths = [str(tmp_path / f"{n}.png") for n in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (96, 64), (40 * number, 0, 0)).save(path)
    size = {"min_pixels": 32 * 32, "max_pixels": 64 * 64}
    encoded = ConversationEncoder(processor).encode(record([video(tuple(paths), **size)]))
    steps, height, width = encoded.media["video_grid_thw"][0].tolist()
    assert steps == 3
    assert height < width
    assert encoded.media["pixel_values_videos"].shape[0] == steps * height * width
    model = lively(translated_dir)
    inputs = encode(processor, [question("q", videos=[Video(tuple(paths), size)])])
    assert model.generate(**inputs, max_new_tokens=4).shape[1] == inputs["input_ids"].shape[1] + 4
    with pytest.raises(DataError, match=r"test: video 'gone.mp4' does not exist; check 'image_root'"):
        ConversationEncoder(processor).encode(record([video("gone.mp4")]))
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(DataError, match=r"broken.mp4' cannot be read"):
        ConversationEncoder(processor).encode(record([video(str(tmp_path / "broken.mp4"))]))
