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
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from diffusionvl import Engine
from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.commands.command_line import Parser
from diffusionvl.data.prompts import encode, question
from diffusionvl.serving.app import create_app
from diffusionvl.serving.server import Server
from diffusionvl.serving.settings import ServingSettings

QUESTION = "what shape is in the image, and what color does it have?"
ROUTE = "/v1/chat/completions"
LIMITS = {"max_batch_size": 16, "max_length": 1024, "prefix_cache_tokens": 8192}  # of the server, and of the engine


class Load(NamedTuple):
    """Requests that arrive one after another.

    Attributes:
        count: Number of requests.
        gap: Seconds between two of them.
        length: Number of tokens of an answer.
    """

    count: int
    gap: float
    length: int


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


def engine_speed(model: Any, processor: Any, load: Load) -> float:
    """Tokens/s of the engine alone, which gets prepared prompts at the times at which the server gets requests."""
    inputs = encode(processor, [question(QUESTION)])
    engine = Engine(model, **LIMITS, max_waiting=load.count)
    begun, requests = time.perf_counter(), []
    while engine.busy or len(requests) < load.count:
        due = min(int((time.perf_counter() - begun) / load.gap) + 1, load.count)
        requests += [engine.add_request(**inputs, max_new_tokens=load.length) for _ in range(due - len(requests))]
        if engine.busy:
            engine.step()
        else:
            time.sleep(0.001)
    return sum(len(request.tokens) for request in requests) / (time.perf_counter() - begun)


async def server_speed(url: str, load: Load) -> float:
    """Tokens/s of streams that are opened one after another and are all open at once in the end."""

    async def ask_in_time(client: httpx.AsyncClient, number: int) -> int:
        await asyncio.sleep(number * load.gap)
        return await stream(client, load.length)

    async with clients(url) as client:
        begun = time.perf_counter()
        tokens = await asyncio.gather(*(ask_in_time(client, number) for number in range(load.count)))
        return sum(tokens) / (time.perf_counter() - begun)


def run_streams(url: str, load: Load) -> float:
    """The same in a process of its own, so that clients and server do not share Python's lock."""
    return asyncio.run(server_speed(url, load))


def clients(url: str) -> httpx.AsyncClient:
    """Any number of connections to a server."""
    return httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))


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


async def ask_again(url: str, streams: int, seconds: float, length: int) -> int:
    """Number of answers of streams that ask again and again."""
    answers, end = 0, time.monotonic() + seconds

    async def go_on(client: httpx.AsyncClient) -> None:
        nonlocal answers
        while time.monotonic() < end:
            await stream(client, length)
            answers += 1

    async with clients(url) as client:
        await asyncio.gather(*(go_on(client) for _ in range(streams)))
    return answers


def run_long(url: str, streams: int, seconds: float, length: int) -> int:
    """The same in a process of its own."""
    return asyncio.run(ask_again(url, streams, seconds, length))


def watch(running: "Future[int]", app: Any) -> list[dict[str, Any]]:
    """Resident memory of this process, and the number of open answers, every few seconds until something has ended."""
    begun, seen = time.monotonic(), []
    while not running.done():
        wait([running], timeout=10)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        mebibytes = pages * resource.getpagesize() / 2**20
        seconds = time.monotonic() - begun
        seen.append({"seconds": round(seconds), "rss_mib": round(mebibytes, 1), "open": app.state.service.open})
        print("  ", seen[-1], flush=True)
    return seen


def first_blocks(client: httpx.Client, size: int, steps: int) -> list[float]:
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
        with client.stream("POST", ROUTE, json=body) as response:
            for line in response.iter_lines():
                if '"token_ids"' in line:
                    first = first or time.perf_counter() - begun
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        seconds.append(first or 0.0)
        messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": "are you sure?"}]
    return seconds


def compare_speeds(model: Any, processor: Any, url: str, pool: ProcessPoolExecutor, load: Load, pairs: int) -> Any:
    """Tokens/s of the engine and of the server, in turn."""
    warm = Load(4, load.gap, 8)
    engine_speed(model, processor, warm)
    pool.submit(run_streams, url, warm).result()
    found = []
    for number in range(pairs):
        if number % 2:
            served, bare = pool.submit(run_streams, url, load).result(), engine_speed(model, processor, load)
        else:
            bare, served = engine_speed(model, processor, load), pool.submit(run_streams, url, load).result()
        found.append({"engine": round(bare, 1), "server": round(served, 1), "ratio": round(served / bare, 3)})
        print(f"tokens/s: {found[-1]}", flush=True)
    return {"pairs": found, "median_ratio": median(pair["ratio"] for pair in found)}


def compare_turns(url: str, picture: int, block_size: int, pairs: int) -> Any:
    """Seconds to the first block of a first and a second turn, for answers of one step a block and of one a token."""
    found = []
    with httpx.Client(base_url=url, timeout=60) as client:
        first_blocks(client, picture, 1)
        for number in range(2 * pairs):
            steps = block_size if number % 2 else 1
            first, second = first_blocks(client, picture, steps)
            found.append({"steps": steps, "first": round(first, 4), "second": round(second, 4)})
            print(f"first block: {found[-1]}, ratio {second / first:.3f}", flush=True)
    return {"turns": found, "median_ratio": round(median(one["second"] / one["first"] for one in found), 3)}


def hold(url: str, app: Any, pool: ProcessPoolExecutor, streams: int, seconds: float) -> Any:
    """Many streams for some time: the number of answers, memory over time, and the rows that remain."""
    running = pool.submit(run_long, url, streams, seconds, 32)
    seen = watch(running, app)
    registry = app.state.service.metrics.registry
    left = {name: registry.get_sample_value(f"diffusionvl_answers_{name}") for name in ("running", "waiting")}
    return {"streams": streams, "answers": running.result(), "errors": 0, "left": left, "memory": seen}


def main(argv: list[str] | None = None) -> int:
    """Prints all measurements, and writes them to a file.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m benchmarks.serving", description="Measure the server against the bare engine.")
    parser.add_argument("--model", required=True, help="block-diffusion checkpoint")
    parser.add_argument("--streams", type=int, default=100, help="answers at a time (100)")
    parser.add_argument("--seconds", type=float, default=300, help="of streams that ask again and again; 0 for none")
    parser.add_argument("--length", type=int, default=64, help="tokens of an answer (64)")
    parser.add_argument("--picture", type=int, default=288, help="side of the picture in pixels (288)")
    parser.add_argument("--pairs", type=int, default=7, help="times that server and engine are measured (7)")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.run(_measure, argv)


def _measure(arguments: argparse.Namespace) -> None:
    """Measures what the arguments ask for."""
    checkpoint = Checkpoint(arguments.model)
    model, processor = checkpoint.model().eval(), checkpoint.processor
    model.generation_config.eos_token_id = None  # answers of equal length
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": arguments.picture**2}
    results: dict[str, Any] = {"arguments": {name: str(value) for name, value in vars(arguments).items()}}
    spawn, size = multiprocessing.get_context("spawn"), model.config.block_size
    load = Load(arguments.streams, 0.01, arguments.length)
    with ProcessPoolExecutor(1, mp_context=spawn) as pool, serving(model, processor, **LIMITS) as (url, app):
        if arguments.pairs:
            results["overhead"] = compare_speeds(model, processor, url, pool, load, arguments.pairs)
            results["second_turn"] = compare_turns(url, arguments.picture, size, arguments.pairs)
        if arguments.seconds:
            results["hold"] = hold(url, app, pool, arguments.streams, arguments.seconds)
    print(json.dumps({name: value for name, value in results.items() if name != "arguments"}, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
