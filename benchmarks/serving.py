"""What the server costs beside the bare engine, what prefix reuse saves, and whether it holds under many streams.

Run `python -m benchmarks.serving --model DIR`. Traffic goes to 127.0.0.1 alone.
"""

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import resource
import socket
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from diffusionvl import Engine
from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.data.prompts import encode, question
from diffusionvl.serving.app import create_app
from diffusionvl.serving.server import Server
from diffusionvl.serving.settings import ServingSettings

QUESTION = "what shape is in the image, and what color does it have?"
ROUTE = "/v1/chat/completions"


@contextmanager
def serving(model: Any, processor: Any, **settings: Any) -> Any:
    """The address of a server in a thread, and its application."""
    app = create_app(model, processor, ServingSettings(**settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(app, "127.0.0.1", 0, log_level="warning")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
        server.should_exit = True
        thread.join()


def ask(text: str, length: int, **fields: Any) -> dict[str, Any]:
    """The body of a question."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": length, **fields}


def engine_speed(model: Any, processor: Any, count: int, length: int) -> float:
    """Tokens/s of the engine alone."""
    inputs = encode(processor, [question(QUESTION)])
    engine = Engine(model, max_batch_size=16, max_length=512, max_waiting=count)
    begun, requests = time.perf_counter(), []
    while engine.busy or len(requests) < count:
        if len(requests) < count:  # one a step, as they come over HTTP
            requests.append(engine.add_request(**inputs, max_new_tokens=length))
        engine.step()
    return sum(len(request.tokens) for request in requests) / (time.perf_counter() - begun)


async def server_speed(url: str, count: int, length: int) -> float:
    """Tokens/s of streams that are all open at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        begun = time.perf_counter()
        usages = await asyncio.gather(*(stream(client, length) for _ in range(count)))
        return sum(usages) / (time.perf_counter() - begun)


def run_streams(url: str, count: int, length: int) -> float:
    """The same in a process of its own, so that clients and server do not share Python's lock."""
    return asyncio.run(server_speed(url, count, length))


async def stream(client: httpx.AsyncClient, length: int) -> int:
    """Number of tokens of one answer, which must end as it should."""
    tokens, last = 0, ""
    body = ask(QUESTION, length, stream=True, stream_options={"include_usage": True})
    async with client.stream("POST", ROUTE, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line:
                last = line
                if '"usage":{' in line:
                    tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    if last != "data: [DONE]":
        raise RuntimeError(f"a stream has ended with {last!r}")
    return tokens


async def hold(url: str, streams: int, seconds: float, length: int) -> int:
    """Number of answers of streams that ask again and again; memory is printed on the way."""
    answers, end = 0, time.monotonic() + seconds

    async def ask_again(client: httpx.AsyncClient) -> None:
        nonlocal answers
        while time.monotonic() < end:
            await stream(client, length)
            answers += 1

    async def report() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(seconds / 4)
            print(f"  {answers} answers, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(report(), *(ask_again(client) for _ in range(streams)))
    return answers


def first_blocks(url: str, size: int, steps: int) -> list[float]:
    """Seconds to the first text of a chat's first turn with a new picture, and of its second turn."""
    pixels = np.random.default_rng(time.time_ns()).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION}]
    messages, seconds = [{"role": "user", "content": parts}], []
    for _ in range(2):
        text, begun, first = "", time.perf_counter(), None
        body = {
            "messages": messages,
            "max_tokens": 16,
            "stream": True,
            "return_token_ids": True,
            "denoising_steps": steps,
        }
        with httpx.stream("POST", url + ROUTE, json=body, timeout=60) as response:
            for line in response.iter_lines():
                if '"token_ids"' in line:
                    first = first or time.perf_counter() - begun
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        seconds.append(first or 0.0)
        messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": "are you sure?"}]
    return seconds


def main() -> None:
    """Prints all measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="block-diffusion checkpoint")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--length", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--picture", type=int, default=288, help="side of the picture in pixels")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(arguments.model)
    model, processor = checkpoint.model().eval(), checkpoint.processor
    model.generation_config.eos_token_id = None  # answers of equal length
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": arguments.picture**2}
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=spawn) as clients,
        serving(model, processor, max_length=1024) as (url, app),
    ):
        engine_speed(model, processor, 16, arguments.length)  # warms up, as do the clients
        clients.submit(run_streams, url, 4, 8).result()
        for _ in range(3):
            bare = engine_speed(model, processor, arguments.streams, arguments.length)
            served = clients.submit(run_streams, url, arguments.streams, arguments.length).result()
            print(f"tokens/s: engine {bare:.0f}, server {served:.0f}, ratio {served / bare:.3f}")
        for steps in (1, model.config.block_size):
            for _ in range(3):
                first, second = first_blocks(url, arguments.picture, steps)
                print(f"first block in {steps}: {first:.3f} s, second turn {second:.3f} s, ratio {second / first:.2f}")
        print(f"{arguments.streams} streams for {arguments.seconds:.0f} s:")
        answers = asyncio.run(hold(url, arguments.streams, arguments.seconds, arguments.length))
        left = {
            name: app.state.service.metrics.registry.get_sample_value(f"diffusionvl_answers_{name}")
            for name in ("running", "waiting")
        }
        print(f"  {answers} answers, 0 errors, left behind: {app.state.service.open} open, {left}")


if __name__ == "__main__":
    main()
