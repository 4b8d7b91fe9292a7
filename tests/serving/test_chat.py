"""Answers over HTTP: those of `generate`, in OpenAI's shapes, whole and as streams."""

import pytest
from helpers import QUESTION, lively
from serving_helpers import NAME, chat, chunks, generated, serving, shown

SETTINGS = {"max_tokens": 17, "return_token_ids": True}


def test_an_answer_has_openais_shape_and_generates_tokens(server, model, processor):
    tokens, text = generated(model, processor, "hi", max_new_tokens=17)
    response = server.chat(**SETTINGS)
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == NAME
    (choice,) = answer["choices"]
    assert choice["token_ids"] == tokens
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 17
    assert usage["total_tokens"] == usage["prompt_tokens"] + 17
    assert usage["forwards"] > 0


@pytest.mark.parametrize("seed", [None, 3])
def test_pictures_and_sampling_are_those_of_generate(server, model, processor, pictures, seed):
    sampling = {} if seed is None else {"temperature": 1.2, "top_k": 20, "top_p": 0.9}
    for paths in ([], pictures[:1], pictures):
        tokens, _ = generated(model, processor, QUESTION, *paths, seed=seed, max_new_tokens=17, **sampling)
        response = server.chat(shown(QUESTION, *paths), seed=seed, **sampling, **SETTINGS)
        assert response.json()["choices"][0]["token_ids"] == tokens


def test_a_chat_of_several_turns_is_written_by_the_template(server, processor, pictures):
    messages = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": shown(QUESTION, pictures[0])},
        {"role": "assistant", "content": "red", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": shown("and this?", pictures[1])},
    ]
    answer = server.client.post("/v1/chat/completions", json={"messages": messages}).json()
    text = (
        "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
        "<|vision_end|>and this?<|im_end|>\n<|im_start|>assistant\n"
    )
    length = len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert answer["usage"]["prompt_tokens"] == length - 2 + 16 + 8


def test_a_stream_is_the_answer_in_openais_order(server, model, processor):
    tokens, text = generated(model, processor, "hi", max_new_tokens=17)
    body = chat(**SETTINGS, stream=True, stream_options={"include_usage": True})
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = chunks(response)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    first, *middle, end, usage = events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert end["choices"][0]["delta"] == {}
    assert end["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 17
    assert all(event["usage"] is None for event in [first, *middle, end])
    assert len(middle) > 2
    assert "".join(event["choices"][0]["delta"]["content"] for event in middle) == text
    assert [token for event in middle for token in event["choices"][0]["token_ids"]] == tokens
    assert all(event["choices"][0]["finish_reason"] is None for event in [first, *middle])


def test_choices_draw_by_seeds_of_their_own(server, model, processor):
    sampling = {"temperature": 1.5, "max_tokens": 9, "return_token_ids": True}
    expected = [
        generated(model, processor, "hi", seed=seed, temperature=1.5, max_new_tokens=9)[0] for seed in (5, 6, 7)
    ]
    answer = server.chat(n=3, seed=5, **sampling).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["token_ids"] for choice in answer["choices"]] == expected
    assert answer["usage"]["completion_tokens"] == sum(map(len, expected))
    with server.client.stream(
        "POST", "/v1/chat/completions", json=chat(n=3, seed=5, stream=True, **sampling)
    ) as response:
        events = chunks(response)
    for index, tokens in enumerate(expected):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [token for choice in own for token in choice.get("token_ids", [])] == tokens
        assert own[-1]["finish_reason"] == "length"


def test_a_stop_text_ends_the_answer_and_is_not_in_it(server, model, processor):
    _, text = generated(model, processor, "hi", max_new_tokens=24)
    stop = text[8:11]
    expected = text[: text.find(stop)]
    whole = server.chat(stop=[stop, "no such text"]).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (expected, "stop")
    with server.client.stream("POST", "/v1/chat/completions", json=chat(stop=stop, stream=True)) as response:
        events = chunks(response)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == expected
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_drafts_show_a_block_after_every_step(server, model, processor):
    """A place that is written keeps its token, and the last draft plus a step is the block."""
    _, text = generated(model, processor, "hi", max_new_tokens=8)
    body = chat(max_tokens=8, stream=True, drafts=True)
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        events = chunks(response)
    drafts = [event["choices"][0]["draft"] for event in events if "draft" in event["choices"][0]]
    assert len(drafts) == 6  # two blocks of four tokens, a step a token, of which the last one is no draft
    for start in (0, 3):
        masked = [[place["text"] is None for place in draft] for draft in drafts[start : start + 3]]
        assert [sum(places) for places in masked] == [3, 2, 1]
    assert all(0 <= place["confidence"] <= 1 for draft in drafts for place in draft)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text


def test_speculative_answers_are_those_of_the_clean_stream_with_wrong_drafts_struck(causal_dir, processor):
    model = lively(causal_dir)
    settings = {"max_tokens": 24, "return_token_ids": True}
    tokens, _ = generated(model, processor, "hi", max_new_tokens=24, decoding="autoregressive")
    with serving(model, processor) as server:
        assert server.chat(decoding="autoregressive", **settings).json()["choices"][0]["token_ids"] == tokens
        body = chat(decoding="speculative", draft_size=4, drafts=True, stream=True, **settings)
        with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            events = [event["choices"][0] for event in chunks(response)]
        assert server.metric("acceptance_length_sum") == 2 * len(tokens)
        (card,) = server.client.get("/v1/models").json()["data"]
        assert card["one_token_a_forward"] == {"decoding": "autoregressive"}
    assert [token for event in events for token in event.get("token_ids", [])] == tokens
    drafts = [event["draft"] for event in events if "draft" in event]
    assert drafts
    assert all(place["text"] is not None for draft in drafts for place in draft)
    assert any("struck" in event for event in events)  # random weights draft badly


def test_a_completion_continues_texts_and_ids(server, model, processor):
    tokenizer, prompt = processor.tokenizer, "is there a circle"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    tokens = model.generate(ids, max_new_tokens=9)[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    for given in (prompt, ids[0].tolist()):
        answer = server.client.post("/v1/completions", json={"prompt": given, "max_tokens": 9}).json()
        assert answer["object"] == "text_completion"
        assert answer["choices"][0]["text"] == text
    both = {"prompt": ["hi", prompt], "max_tokens": 9, "n": 2}
    answer = server.client.post("/v1/completions", json=both).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]][2:] == [text, text]
    with server.client.stream("POST", "/v1/completions", json={"prompt": prompt, "max_tokens": 9, "stream": True}) as r:
        assert "".join(event["choices"][0]["text"] for event in chunks(r)) == text


def test_the_next_turn_does_not_read_the_first_one_again(model, processor, pictures):
    """Nor its picture; so do other questions about the same picture."""
    first = {"role": "user", "content": shown(QUESTION, pictures[0])}
    answers = {}
    for kept in (0, 1000):
        with serving(model, processor, prefix_cache_tokens=kept) as server:

            def ask(*messages):
                body = {"messages": messages, "max_tokens": 9, "return_token_ids": True}
                answer = server.client.post("/v1/chat/completions", json=body).json()
                return answer["choices"][0], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

            said, none = ask(first)
            turn = {"role": "assistant", "content": said["message"]["content"]}
            next_turn, reused = ask(first, turn, {"role": "user", "content": "are you sure?"})
            other, shared = ask({"role": "user", "content": shown("which shape is it?", pictures[0])})
            assert none == 0
            assert (reused > 30, shared > 16) == (kept > 0, kept > 0)
            assert server.metric("reused_prompt_tokens_total") == reused + shared
            answers[kept] = [choice["token_ids"] for choice in (said, next_turn, other)]
    assert answers[0] == answers[1000]


def test_models_health_and_metrics(server):
    (card,) = server.client.get("/v1/models").json()["data"]
    assert (card["id"], card["object"]) == (NAME, "model")
    assert server.client.get(f"/v1/models/{NAME}").json() == card
    assert server.client.get("/health").json() == {"status": "ok"}
    server.chat()
    text = server.client.get("/metrics").text
    for name in ("answers_waiting", "answer_tokens_total", "tokens_per_forward_sum", "time_to_first_block_seconds_sum"):
        assert f"diffusionvl_{name}" in text
