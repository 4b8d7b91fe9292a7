"""Clients of OpenAI's interface that others have written get what `generate` gives."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from helpers import QUESTION, load_model
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.chat.async_openai import AsyncOpenAIChat
from lmms_eval.tasks import TaskManager
from PIL import Image
from serving_helpers import NAME, generated, serving, shown

from diffusionvl.checkpoints.loading import load_processor
from diffusionvl.evaluation.lmms_eval_model import DiffusionVLChat
from eval.tasks import make_data


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def messages(pictures):
    return [{"role": "user", "content": shown(QUESTION, pictures[0])}]


@pytest.fixture(scope="module")
def text(model, processor, pictures):
    return generated(model, processor, QUESTION, pictures[0], max_new_tokens=24)[1]


def test_openais_client(client, messages, text):
    answer = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=24)
    assert answer.choices[0].message.content == text
    assert answer.usage.completion_tokens == 24
    assert [model.id for model in client.models.list()] == [NAME]
    completion = client.completions.create(model=NAME, prompt="hi", max_tokens=4)
    assert completion.usage.completion_tokens == 4


def test_openais_client_streams(client, messages, text):
    stream = client.chat.completions.create(
        model=NAME,
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"denoising_steps": 4, "drafts": True},
    )
    chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert any(choice.model_extra.get("draft") for chunk in chunks for choice in chunk.choices)
    assert chunks[-1].usage.completion_tokens == 24
    with client.chat.completions.stream(model=NAME, messages=messages, stop=text[8:10]) as events:
        assert events.get_final_completion().choices[0].message.content == text[: text.find(text[8:10])]


def test_openais_asynchronous_client(server, messages, text):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            create = client.chat.completions.create
            whole = [create(model=NAME, messages=messages, temperature=0, seed=1) for _ in range(8)]
            answers = [answer.choices[0].message.content for answer in await asyncio.gather(*whole)]
            parts = [chunk async for chunk in await create(model=NAME, messages=messages, stream=True)]
            return [*answers, "".join(part.choices[0].delta.content or "" for part in parts)]

    assert asyncio.run(ask()) == [text] * 9


def test_openais_client_knows_the_errors(client, messages):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=NAME, messages=messages, frequency_penalty=1)
    assert error.value.param == "frequency_penalty"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=messages)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=NAME, messages=messages, max_tokens=10_000)
    assert error.value.code == "context_length_exceeded"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of its own
def test_litellm(server, messages, text, monkeypatch):
    """What many proxies and agents call models by. It takes seconds to import."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch a list of prices
    litellm = pytest.importorskip("litellm")
    place = {"model": f"openai/{NAME}", "api_base": f"{server.url}/v1", "api_key": "none", "messages": messages}
    assert litellm.completion(**place).choices[0].message.content == text
    stream = litellm.completion(**place, stream=True, stream_options={"include_usage": True})
    assert "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices) == text


def test_lmms_evals_client(server, model, processor, pictures):
    """lmms-eval's own `async_openai` sends its documents at once, with pictures as data URIs."""
    documents = [(QUESTION, 0), ("is there a circle?", None), (QUESTION, 1), ("which shape is it?", 2)]

    def messages_of(document):
        question, picture = document
        images = [] if picture is None else [{"type": "image", "url": Image.open(pictures[picture])}]
        return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]

    client = AsyncOpenAIChat(model_version=NAME, base_url=f"{server.url}/v1", api_key="none", num_cpus=4)
    client.task_dict["shapes"] = {"test": documents}
    settings = {"max_new_tokens": 12, "temperature": 0, "top_p": None, "do_sample": False}
    asked = [
        Instance(
            request_type="generate_until",
            arguments=("", messages_of, dict(settings), number, "shapes", "test"),
            idx=0,
            metadata={"task": "shapes", "doc_id": number, "repeats": 1},
        )
        for number in range(len(documents))
    ]
    results = client.generate_until(asked)
    for (question, picture), result in zip(documents, results, strict=True):
        paths = [] if picture is None else [pictures[picture]]
        tokens, text = generated(model, processor, question, *paths, max_new_tokens=12)
        assert result.text == text
        assert result.token_counts.output_tokens == len(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["easy_vqa_short", "easy_vqa_long"])
def test_a_local_task_has_the_plugins_results(translated_dir, tmp_path, monkeypatch, task):
    """The first 24 questions of a task, by lmms-eval's evaluator: through the server and through the plugin."""
    tasks = tmp_path / "eval" / "tasks"
    shutil.copytree(Path(make_data.__file__).parent, tasks)
    make_data.write_easy_vqa(tmp_path / "outputs" / "eval-data" / "easy_vqa")
    monkeypatch.chdir(tasks)  # where the paths of the tasks' data begin
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def results_of(model):
        found = simple_evaluate(
            model=model, tasks=[task], task_manager=manager, limit=24, bootstrap_iters=0, log_samples=True
        )
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        metrics = {name: value for name, value in found["results"][task].items() if "exact_match" in name}
        return metrics, [sample["filtered_resps"][0].strip() for sample in samples]  # the plugin strips them

    expected = results_of(DiffusionVLChat(translated_dir, device="cpu", batch_size=16))
    with serving(load_model(translated_dir), load_processor(translated_dir)) as server:
        client = AsyncOpenAIChat(model_version=NAME, base_url=f"{server.url}/v1", api_key="none", num_cpus=8)
        assert results_of(client) == expected
        assert server.metric("answers_ended_total", reason="error") == 0
    assert len(expected[1]) == 24


@pytest.mark.slow
def test_transformers_chat(server, model, processor, tmp_path):
    """Its command sends the settings as a generation config."""
    _, text = generated(model, processor, "hi", max_new_tokens=5)
    command = [Path(sys.executable).with_name("transformers"), "chat", NAME, f"{server.url}/v1"]
    settings = ["max_new_tokens=5", "do_sample=False"]
    done = subprocess.run(
        [*command, *settings, "--user", "me"],
        input="hi\nn\n!exit\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "0"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert text.split()[0] in done.stdout
    assert "token limit" in done.stdout
