"""Many clients at once, and clients that go away: everybody gets what `generate` gives, and no slot is lost."""

import asyncio
import json
import random
import threading
import time

import httpx
import pytest
from helpers import QUESTION
from serving_helpers import chat, chunks, generated, half_a_request, serving, shown

KINDS = 24  # different requests, each of which is asked many times


def mixed_requests(model, processor, pictures):
    """Bodies of many kinds, with the tokens that `generate` gives; choice by choice."""
    rng, requests = random.Random(0), []
    for number in range(KINDS):
        paths = rng.choice([(), (), pictures[:1], pictures[1:2], pictures])
        question = rng.choice(["hi", QUESTION, "is there a circle, a square or a triangle in the image?"])
        settings = {"remasking": rng.choice(["low_confidence_static", "low_confidence_dynamic", "entropy_bounded"])}
        settings |= {"denoising_steps": rng.choice([1, 2, 4]), "confidence_threshold": 0.3, "entropy_bound": 1.0}
        settings |= rng.choice([{}, {"temperature": 1.2}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}])
        length, n = rng.choice([3, 9, 24]), rng.choice([1, 1, 1, 2])
        expected = [
            generated(model, processor, question, *paths, seed=number + i, max_new_tokens=length, **settings)[0]
            for i in range(n)
        ]
        extra = {"max_tokens": length, "n": n, "seed": number, "return_token_ids": True, "stream": rng.random() < 0.5}
        requests.append((chat(shown(question, *paths), **settings, **extra), expected))
    return requests


async def ask(client, body):
    """Token ids choice by choice, streamed or not."""
    if not body["stream"]:
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return [choice["token_ids"] for choice in response.json()["choices"]]
    found = [[] for _ in range(body["n"])]
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line and not line.endswith("[DONE]"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    found[choice["index"]] += choice.get("token_ids", [])
    return found


async def ask_some(url, requests, count, aborted):
    """Asks at random, and goes away from a share of them at random; the number that were answered."""
    rng, answered = random.Random(1), 0
    limits = httpx.Limits(max_connections=None)

    async def one(client, number):
        nonlocal answered
        body, expected = requests[number % len(requests)]
        await asyncio.sleep(rng.random() * count / 50)
        task = asyncio.ensure_future(ask(client, body))
        if rng.random() < aborted:
            await asyncio.sleep(rng.random() * 0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return
        assert await task == expected
        answered += 1

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(client, number) for number in range(count)))
    return answered


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_whatever_comes_and_goes_everybody_gets_what_generate_gives(model, processor, pictures, count):
    requests = mixed_requests(model, processor, pictures)
    assert len({str(expected) for _, expected in requests}) > 18
    with serving(model, processor, max_batch_size=5, max_waiting=1000) as server:
        assert asyncio.run(ask_some(server.url, requests, count, aborted=0.2)) > 0.6 * count
        server.wait_until_idle()
        assert server.metric("answers_ended_total", reason="abort") > 3


def test_a_client_that_goes_away_frees_its_row_streaming_or_not(model, processor):
    """While its answer is written, and while it waits."""
    with serving(model, processor, max_batch_size=1) as server:
        for stream in (True, False):
            before = server.metric("answers_ended_total", reason="abort")
            connections = [half_a_request(server.url, chat(max_tokens=200, stream=stream)) for _ in range(2)]
            while server.metric("answers_waiting") < 1:
                time.sleep(0.005)
            for connection in connections:
                connection.close()
            server.wait_until_idle()
            assert server.metric("answers_ended_total", reason="abort") == before + 2
        assert server.metric("answers_ended_total", reason="length") == 0
        assert server.metric("responses_total", status="499") == 2  # a stream had its status already


def test_pictures_are_read_beside_the_streams(model, processor, pictures, monkeypatch):
    """A picture that takes long to read holds up nobody else."""
    from diffusionvl.serving import prompts

    reading, go_on = threading.Event(), threading.Event()
    read = prompts.read_picture

    def slowly(*args):
        reading.set()
        assert go_on.wait(20)
        return read(*args)

    monkeypatch.setattr(prompts, "read_picture", slowly)
    with serving(model, processor) as server:
        found = []
        asking = threading.Thread(target=lambda: found.append(server.chat(shown(QUESTION, pictures[0]))))
        asking.start()
        assert reading.wait(10)
        with server.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
            assert len(chunks(response)) > 2
        assert not found
        go_on.set()
        asking.join(10)
        assert found[0].status_code == 200
