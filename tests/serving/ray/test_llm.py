"""Ray Serve LLM's own ingress before our engine; run where vLLM or SGLang gives it its models of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

llm = pytest.importorskip(
    "ray.serve.llm", reason="Ray Serve LLM needs vLLM or SGLang, neither of which is installed", exc_type=ImportError
)

import ray  # noqa: E402
from ray import serve  # noqa: E402

from glm_export.errors import InputError  # noqa: E402
from glm_export.serving.ray.llm import serve_options  # noqa: E402

SERVER = "glm_export.serving.ray.llm.GlmServer"
ROUTER = "ray.serve.llm.request_router.PrefixCacheAffinityRouter"


@pytest.fixture(scope="module")
def address(ort_program: Path, free_port: int) -> Iterator[str]:
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    config = llm.LLMConfig(
        model_loading_config={"model_id": "verses", "model_source": str(ort_program)},
        server_cls=SERVER,
        engine_kwargs={"max_batch": 4, "threads": 1},
        deployment_config={"num_replicas": 2, "request_router_config": {"request_router_class": ROUTER}},
    )
    serve.start(http_options={"port": free_port})
    serve.run(llm.build_openai_app({"llm_configs": [config]}), blocking=False)
    yield f"http://127.0.0.1:{free_port}"
    serve.shutdown()
    ray.shutdown()


def test_its_ingress_tells_what_our_engine_writes(address: str) -> None:
    ask = {"model": "verses", "prompt": "床前明月光", "max_tokens": 20, "temperature": 0}
    whole = httpx.post(f"{address}/v1/completions", json=ask, timeout=60).json()
    assert whole["choices"][0]["text"] == "，疑是地上霜。\n举头望明月，低头思故乡。"
    assert whole["model"] == "verses"
    chat = {
        "model": "verses",
        "messages": [{"role": "user", "content": "床前明月光"}],
        "max_tokens": 9,
        "temperature": 0,
    }
    said = httpx.post(f"{address}/v1/chat/completions", json=chat, timeout=60).json()["choices"][0]["message"][
        "content"
    ]
    streamed = httpx.post(f"{address}/v1/chat/completions", json=chat | {"stream": True}, timeout=60).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(one)["choices"][0]["delta"].get("content", "") for one in events[:-1]]
    assert "".join(pieces) == said
    refused = httpx.post(f"{address}/v1/completions", json=ask | {"prompt": "x" * 4000}, timeout=60)
    assert refused.status_code == 400
    assert "maximum context length" in refused.text


def test_what_an_engine_cannot_be_told_is_refused() -> None:
    with pytest.raises(InputError, match="tensor_parallel_size"):
        serve_options({"max_batch": 2, "tensor_parallel_size": 2})
