"""The clients people have, unchanged: what is streamed is what is whole, alone and in company."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from glm_export import api
from glm_export.sessions.session import Session

LINE, NEXT = "春眠不觉晓，处处闻啼鸟。\n", "夜来风雨声，花落知多少。"


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with api.load_session("demo") as made:
        yield made


def test_what_is_served(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "demo-glm"]
    assert client.models.retrieve("demo-glm").object == "model"


def test_a_completion_is_what_generate_writes(client: openai.OpenAI, session: Session) -> None:
    answer = client.completions.create(model="demo", prompt=LINE, temperature=0, max_tokens=40)
    assert answer.choices[0].text.strip() == NEXT == api.generate(session, LINE, max_new_tokens=40).strip()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(session.encode(LINE))
    pieces = client.completions.create(model="demo", prompt=LINE, temperature=0, max_tokens=40, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_several_prompts_and_choices(client: openai.OpenAI, session: Session) -> None:
    prompts = [LINE, "白日依山尽，黄河入海流。\n"]
    answer = client.completions.create(model="demo", prompt=prompts, temperature=0, max_tokens=40, n=2)
    expected = api.generate(session, prompts, max_new_tokens=40)
    assert [choice.text for choice in answer.choices] == [expected[0]] * 2 + [expected[1]] * 2
    ids = [session.encode(prompt) for prompt in prompts]
    again = client.completions.create(model="demo", prompt=ids, temperature=0, max_tokens=40)
    assert [choice.text for choice in again.choices] == expected


@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}])
def test_a_chat_streamed_is_the_chat_whole(client: openai.OpenAI, drawn: dict[str, float]) -> None:
    asked = {"model": "demo", "messages": [{"role": "user", "content": LINE}], "max_tokens": 24, **drawn}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)  # type: ignore[call-overload]
    text, reason, usage = "", None, None
    logprobs: list[Any] = []
    for piece in client.chat.completions.create(  # type: ignore[call-overload]
        **asked, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    ):
        usage = piece.usage or usage
        for choice in piece.choices:
            text += choice.delta.content or ""
            logprobs += (choice.logprobs.content or []) if choice.logprobs else []
            reason = choice.finish_reason or reason
    assert text == whole.choices[0].message.content
    assert reason == whole.choices[0].finish_reason
    assert [one.token for one in logprobs] == [one.token for one in whole.choices[0].logprobs.content]
    np.testing.assert_allclose(
        [one.logprob for one in logprobs], [one.logprob for one in whole.choices[0].logprobs.content], atol=1e-3
    )
    assert usage.completion_tokens == whole.usage.completion_tokens == len(logprobs)


def test_many_at_once_get_what_each_gets_alone(client: openai.OpenAI, session: Session) -> None:
    """More than there are rows, prompts that begin alike among them."""
    lines = [LINE, "白日依山尽，黄河入海流。\n", "床前明月光，疑是地上霜。\n", "千山鸟飞绝，万径人踪灭。\n"] * 5
    expected = {line: api.generate(session, line, max_new_tokens=16) for line in set(lines)}

    def write(line: str) -> str:
        return client.completions.create(model="demo", prompt=line, temperature=0, max_tokens=16).choices[0].text

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(write, lines)) == [expected[line] for line in lines]


def test_stop_strings_and_biases(client: openai.OpenAI, session: Session) -> None:
    stopped = client.completions.create(model="demo", prompt=LINE, temperature=0, max_tokens=40, stop=["声，"])
    assert stopped.choices[0].text == NEXT.partition("声，")[0]
    assert stopped.choices[0].finish_reason == "stop"
    first = session.tokenizer.encode_plain(NEXT)[-12]
    biased = client.completions.create(
        model="demo", prompt=LINE, temperature=0, max_tokens=3, logit_bias={str(first): -100}
    )
    assert not biased.choices[0].text.startswith(session.tokenizer.decode([first]))


def test_a_text_that_may_not_end(client: openai.OpenAI) -> None:
    """As benchmarks ask, by vLLM's names: so many tokens, whatever the model says; an id that is no token is none."""
    asked = {"model": "demo", "prompt": LINE, "temperature": 0, "max_tokens": 60}
    ended = client.completions.create(**asked)  # type: ignore[call-overload]
    assert ended.choices[0].finish_reason == "stop"
    for more, least in (
        ({"ignore_eos": True}, 60),
        ({"min_tokens": 50, "stop_token_ids": [-3, 1 << 40]}, 50),
    ):
        longer = client.completions.create(**asked, extra_body=more)  # type: ignore[call-overload]
        assert longer.usage.completion_tokens >= least > ended.usage.completion_tokens
        assert longer.choices[0].text.startswith(ended.choices[0].text)
    with pytest.raises(openai.BadRequestError, match="ignore_eos"):
        client.completions.create(**asked, extra_body={"ignore_eos": True, "guided_regex": "a+"})  # type: ignore[call-overload]


def test_an_evaluation_reads_prompts_log_probabilities(client: openai.OpenAI, session: Session, server: str) -> None:
    """As lm-eval asks: ids, echo, log-probabilities, one token more."""
    info = httpx.get(f"{server}/tokenizer_info").json()
    ids = httpx.post(f"{server}/tokenize", json={"prompt": LINE}).json()["tokens"]
    assert ids == session.encode(LINE)
    assert info["eos_token_id"] in session.config.eos_token_ids
    answer = client.completions.create(
        model="demo", prompt=[ids], max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1234
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert len(told.token_logprobs) == len(ids) + 1
    assert told.token_logprobs[:1] == [None]
    rows = session.prefill(session.feeds([session.prompt(ids)]))[0].astype(np.float64)
    logs = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
    expected = logs[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(told.token_logprobs[1 : len(ids)], expected, atol=1e-3)


def test_blanks_and_labels(server: str) -> None:
    asked = {"model": "demo-glm", "text": "春眠不觉晓，[MASK]", "temperature": 0}
    filled = httpx.post(f"{server}/v1/infill", json=asked).json()
    with api.load_session("demo-glm") as session:
        assert filled["fills"] == list(api.infill(session, asked["text"]).fills)
        labels = ["处处闻啼鸟。", "黄河入海流。"]
        expected = api.score(session, "", pattern="春眠不觉晓，{}[MASK]", labels=labels)
    scored = httpx.post(
        f"{server}/v1/score",
        json={"model": "demo-glm", "text": "", "pattern": "春眠不觉晓，{}[MASK]", "labels": labels},
    ).json()
    assert [one["label"] for one in scored["data"]] == [one.label for one in expected]
    np.testing.assert_allclose([one["mean"] for one in scored["data"]], [one.mean for one in expected], atol=1e-3)


def test_tokens_there_and_back(server: str, session: Session) -> None:
    ids = session.tokenizer.encode_plain(NEXT)
    assert httpx.post(f"{server}/detokenize", json={"tokens": ids}).json()["prompt"].strip() == NEXT
    messages = [{"role": "user", "content": LINE}]
    shown = httpx.post(f"{server}/apply-template", json={"messages": messages}).json()
    assert shown["tokens"] == session.tokenizer.chat(messages)
    assert LINE.strip() in shown["prompt"]
