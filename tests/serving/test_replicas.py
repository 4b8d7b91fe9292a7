"""Several servers as one: one is killed under load, and nothing but what it was writing is lost."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from helpers import load_model
from serving_helpers import NAME, chat, generated

CONFIGS = Path(__file__).parents[2] / "configs" / "serving"
QUESTIONS = ["hi", "is there a circle?", "what shape is in the image?", "which color?"]
LENGTH = 40

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture
def replicas(translated_dir, tmp_path):
    """Two servers behind nginx: its address, and their processes."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    ports = [free_port() for _ in range(3)]
    config = (CONFIGS / "nginx.conf").read_text()
    for given, free in zip(("8000", "8001", "8002"), ports, strict=True):
        config = config.replace(f"127.0.0.1:{given}", f"127.0.0.1:{free}")
    (tmp_path / "nginx.conf").write_text(config)
    command = [sys.executable, "-m", "diffusionvl.cli", "serve", translated_dir, "--name", NAME, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    servers = [subprocess.Popen([*command, "--port", str(port)], env=environment) for port in ports[1:]]
    proxy = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
    try:
        for port in (*ports[1:], ports[0]):
            wait_for(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{ports[0]}", servers
    finally:
        for process in (proxy, *servers):
            process.terminate()
        for process in (proxy, *servers):
            process.wait(20)


async def ask(client, name, question, stream):
    """The text of an answer; None if the connection broke before its end."""
    body = {**chat(question, max_tokens=LENGTH, stream=stream), "model": name}
    try:
        if not stream:
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code == 500:  # of Ray's proxy, for a request that ran
                return None
            assert response.status_code == 200, response.text
            return response.json()["choices"][0]["message"]["content"]
        text = ""
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return text
                if line:
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    except httpx.RemoteProtocolError:
        pass
    return None


async def ask_under_load(url, name, kill, expected, count=60, at_once=8):
    """Asks, and kills a server after a third; the numbers of whole answers and of broken ones, before and after."""
    found, gate = [], asyncio.Semaphore(at_once)

    async def one(client, number):
        async with gate:
            if number == count // 3:
                kill()
            question = QUESTIONS[number % len(QUESTIONS)]
            text = await ask(client, name, question, stream=number % 2 == 0)
            assert text in (None, expected[question])
            found.append((number, text is not None))

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(one(client, number) for number in range(count)))
    return found


def check_a_kill(url, kill, model, processor, name=NAME):
    expected = {question: generated(model, processor, question, max_new_tokens=LENGTH)[1] for question in QUESTIONS}
    found = asyncio.run(ask_under_load(url, name, kill, expected))
    broken = [number for number, whole in found if not whole]
    assert len(broken) <= 8  # what ran when it was killed
    assert all(number < 60 // 3 + 8 for number in broken)


def test_nginx_gives_the_requests_of_a_killed_server_to_the_other(replicas, translated_dir, processor):
    url, servers = replicas
    check_a_kill(url, servers[0].kill, load_model(translated_dir), processor)
    streams = re.findall(r'diffusionvl_responses_total\{status="200"\} (\d+)', httpx.get(f"{url}/metrics").text)
    assert int(streams[0]) > 20


@pytest.fixture
def ray_replicas(translated_dir, monkeypatch):
    """Two replicas of Ray Serve: their address, and what kills one of them."""
    ray = pytest.importorskip("ray")
    from ray import serve
    from ray.util.state import list_actors

    from configs.serving.ray_serve import build

    root = str(CONFIGS.parents[1])
    port = free_port()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=4,
        _node_ip_address="127.0.0.1",
        include_dashboard=True,
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"model": translated_dir, "replicas": "2", "least_replicas": "2"}))

        def kill():
            actors = list_actors(filters=[("state", "=", "ALIVE")])
            os.kill(next(actor.pid for actor in actors if "diffusionvl" in actor.class_name), signal.SIGKILL)

        yield f"http://127.0.0.1:{port}", kill
    finally:
        serve.shutdown()
        ray.shutdown()


def test_ray_serve_replaces_a_killed_replica(ray_replicas, translated_dir, processor):
    url, kill = ray_replicas
    name = Path(translated_dir).name
    check_a_kill(url, kill, load_model(translated_dir), processor, name)
