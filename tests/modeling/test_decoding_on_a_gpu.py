"""What only a GPU can show of decoding: the same tokens as on a CPU, CUDA graphs over static shapes, half precision."""

import pytest
import torch
from decoding_requests import build_requests
from helpers import QUESTION, assert_same, lively, prompts

from diffusionvl import Engine

pytestmark = pytest.mark.gpu
REMASKINGS = ["low_confidence_static", "low_confidence_dynamic", "entropy_bounded"]


@pytest.fixture
def inputs(processor, pictures):
    """Prompts of one batch with no, one and two pictures."""
    return prompts(processor, ("hi",), (QUESTION, pictures[0]), (QUESTION, pictures[1], pictures[2]))


@pytest.mark.parametrize("remasking", REMASKINGS)
def test_a_gpu_writes_what_a_cpu_writes(translated_dir, inputs, remasking):
    model = lively(translated_dir)
    settings = {"max_new_tokens": 20, "remasking": remasking, "confidence_threshold": 0.3, "entropy_bound": 1.0}
    expected = model.generate(**inputs, **settings)
    assert torch.equal(model.cuda().generate(**inputs.to("cuda"), **settings).cpu(), expected)


def test_cuda_graphs_write_the_same_tokens(translated_dir, processor, pictures):
    """A compiled decoder with static shapes records its forwards once and replays them for later requests."""
    model = lively(translated_dir).cuda()
    # Draws would need generators on the GPU; what is compared here are the forwards.
    some = [
        ({name: value.to("cuda") for name, value in inputs.items()}, {**settings, "temperature": 0.0}, seed)
        for inputs, settings, seed in build_requests(processor, pictures, 6)
    ]
    expected = [
        model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist() for inputs, settings, _ in some
    ]
    model.base.get_decoder().compile(mode="reduce-overhead", dynamic=False)
    engine = Engine(model, max_batch_size=3, max_length=128, static_shapes=True)
    requests = [engine.add_request(**inputs, **settings) for inputs, settings, _ in some]
    while engine.busy:
        engine.step()
    assert [request.tokens for request in requests] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_speculative_decoding_writes_what_autoregressive_decoding_writes(translated_dir, inputs, dtype):
    """In half precision a near tie may fall otherwise, after which texts part: there only first tokens are compared."""
    model, inputs = lively(translated_dir, clean_attention="causal").to("cuda", dtype), inputs.to("cuda")
    found, expected = (
        model.generate(**inputs, max_new_tokens=20, decoding=decoding) for decoding in ("speculative", "autoregressive")
    )
    width = 20 if dtype == torch.float32 else 1
    first = inputs["input_ids"].shape[1]
    assert torch.equal(found[:, first : first + width], expected[:, first : first + width])


def test_half_precision_is_near_single_precision(translated_dir, inputs):
    model, inputs = lively(translated_dir).cuda(), inputs.to("cuda")
    settings = {"max_new_tokens": 4, "output_history": True, "return_dict_in_generate": True}
    expected = model.generate(**inputs, **settings).history[0].confidence
    assert_same(model.bfloat16().generate(**inputs, **settings).history[0].confidence.float(), expected.float(), 0.1)
