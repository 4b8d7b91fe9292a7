"""A server in a thread, questions for it, and the answers that `generate` gives to the same questions."""

import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import torch
from helpers import prompts
from PIL import Image

from diffusionvl.serving.app import create_app
from diffusionvl.serving.server import Server
from diffusionvl.serving.settings import ServingSettings

NAME = "tiny"


@dataclass
class Running:
    """A server that runs."""

    url: str
    app: object
    client: httpx.Client

    @property
    def service(self):
        return self.app.state.service

    def chat(self, content="hi", **fields):
        return self.client.post("/v1/chat/completions", json=chat(content, **fields))

    def metric(self, name, **labels):
        return self.service.metrics.registry.get_sample_value(f"diffusionvl_{name}", labels) or 0

    def wait_until_idle(self, seconds=10):
        """Waits until nothing holds a row or a place any more; fails if that takes too long."""
        end = time.monotonic() + seconds
        while self.service.open or self.metric("answers_running") or self.metric("answers_waiting"):
            assert time.monotonic() < end, "something still holds a row"
            time.sleep(0.01)


@contextmanager
def serving(model, processor, **settings):
    """Serves on a free port."""
    app = create_app(model, processor, ServingSettings(**{"name": NAME, "max_length": 256, **settings}))
    server = Server(app, "127.0.0.1", 0, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60) as client:
        yield Running(url, app, client)
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def chat(content="hi", **fields):
    """The body of a chat with one turn."""
    return {"model": NAME, "messages": [{"role": "user", "content": content}], **fields}


def data_uri(path):
    """A picture file as a PNG data URI."""
    buffer = io.BytesIO()
    Image.open(path).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shown(question, *paths):
    """The content of a turn: pictures, then the question."""
    pictures = [{"type": "image_url", "image_url": {"url": data_uri(path)}} for path in paths]
    return [*pictures, {"type": "text", "text": question}]


def generated(model, processor, question, *paths, seed=None, **settings):
    """Tokens and text of the answer by `generate`."""
    inputs = prompts(processor, (question, *paths))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    tokenizer = processor.tokenizer
    output = model.generate(**inputs, **settings, generator=generator, tokenizer=tokenizer)
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens, tokenizer.decode(tokens, skip_special_tokens=True)


def chunks(response):
    """The events of a stream, which must end with `[DONE]`."""
    events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def half_a_request(url, body):
    """A socket that has asked and does not read."""
    host, _, port = url.removeprefix("http://").partition(":")
    content = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
    return connection
