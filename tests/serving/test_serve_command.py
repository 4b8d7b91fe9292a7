"""`diffusionvl serve` as a process: it starts, answers, drains on SIGTERM, and says in one line what it cannot do."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from helpers import run
from serving_helpers import chat, half_a_request


@pytest.fixture
def started(translated_dir, tmp_path):
    """A process that serves, and a client for it."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "diffusionvl.cli", "serve", translated_dir, "--port", "0", "--name", "tiny"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--max-batch-size", "2"],
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=found[0], timeout=60) as client:
            yield process, client, log
    finally:
        process.kill()
        process.wait()


def test_sigterm_answers_what_runs_and_refuses_what_is_new(started):
    """Then the process ends with code 0; its log holds no prompt."""
    process, client, log = started
    long = chat("a secret question", max_tokens=300, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=long) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        while client.get("/health").status_code == 200:
            time.sleep(0.01)
        refused = client.post("/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert list(filter(None, lines))[-1] == "data: [DONE]"
    assert process.wait(60) == 0
    assert "200 in" in log.read_text()
    assert "secret" not in log.read_text()


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(started):
    process, client, _ = started
    connection = half_a_request(str(client.base_url), chat(max_tokens=4000))
    while b"running 1.0" not in client.get("/metrics").content:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    while client.get("/health").status_code == 200:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    connection.close()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["{base}"], ["autoregressive", "diffusionvl translate"]),
        (["{tmp}/none"], ["none"]),
        (["{model}", "--max-batch-size", "0"], ["max_batch_size", "at least 1"]),
        (["{model}", "--api-key-file", "{tmp}/empty"], ["--api-key-file", "empty"]),
        (["{model}", "--api-key-file", "{tmp}/none"], ["none"]),
        (["{model}", "--port", "many"], ["--port"]),
    ],
)
def test_what_it_cannot_serve_is_one_line_and_code_2(capsys, tmp_path, base_dir, translated_dir, argv, said):
    (tmp_path / "empty").write_text("\n")
    argv = [word.format(tmp=tmp_path, base=base_dir, model=translated_dir) for word in argv]
    code, out, err = run(capsys, "serve", *argv)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("diffusionvl serve: error: ")
    for part in said:
        assert part in err


@pytest.mark.parametrize("port", [None, 10**6])
def test_a_port_that_cannot_be_had_is_one_line(capsys, port):
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = other.getsockname()[1] if port is None else port
        code, _, err = run(capsys, "serve", "no model is loaded", "--port", str(used))
    assert code == 2
    (line,) = err.splitlines()
    assert f"--port {used}" in line
