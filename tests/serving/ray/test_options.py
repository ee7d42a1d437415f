"""What goes together, what an application is told, and how many engines a load wants; without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glm_export.errors import InputError
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.autoscaling import UNREAD, LoadPolicy, wanted
from glm_export.serving.ray.cluster import serve_on_ray
from glm_export.serving.ray.options import RayOptions


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": 2, "max_replicas": 3}, "always"),
        ({"min_replicas": 2}, "wants --max-replicas"),
        ({"min_replicas": 4, "max_replicas": 3}, "more than"),
        ({"detach": True}, "--ray-address"),
        ({"routing": "luck"}, "known: prefix, load, random"),
    ],
)
def test_options_that_do_not_go_together(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RayOptions(**given)


@pytest.mark.parametrize(
    ("requests", "unread", "engines"),
    [(0, 0, 1), (8, 0, 1), (9, 0, 2), (80, 0, 10), (3, 4096, 1), (3, 4097, 2), (17, 20000, 5)],
)
def test_engines_for_a_load(requests: float, unread: float, engines: int) -> None:
    assert wanted(requests, unread, target_requests=8, target_tokens=4096) == engines

    class Context:
        total_num_requests = requests
        aggregated_metrics = {UNREAD: {"A": unread / 2, "B": unread / 2}} if unread else None

    assert LoadPolicy(8, 4096)(Context()) == (engines, {})


@pytest.mark.parametrize("words", [["--replicas", "2"], ["--routing", "load"], ["--detach", "--ray-address", "auto"]])
def test_what_is_for_a_cluster_is_refused_without(words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "glm_export.cli", "serve", "demo", *words],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "add --ray, or leave it out" in ended.stderr


def test_a_port_that_nobody_chose_is_refused() -> None:
    with pytest.raises(InputError, match="say which"):
        serve_on_ray(["demo"], ServeOptions(port=0), RayOptions(), lambda _: None)


def test_an_application_is_built_of_plain_values(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from glm_export.serving.ray.application import application, build

    keys = tmp_path / "keys.txt"
    keys.write_text("secret\n")
    made = build({"models": ["demo", "demo-glm"], "max_batch": 2, "max_replicas": 3, "api_key_file": str(keys)})
    assert made._bound_deployment.name == "ingress"
    names, options, digests, *engines = made._bound_deployment.init_args
    assert names == ["demo", "demo-glm"]
    assert "secret" not in repr((options, digests))
    assert [len(digest) for digest in digests] == [64]
    assert [engine._bound_deployment.name for engine in engines] == names
    assert [engine._bound_deployment.max_ongoing_requests for engine in engines] == [4, 4]
    with pytest.raises(InputError, match="max_batches"):
        build({"models": ["demo"], "max_batches": 2})
    with pytest.raises(InputError, match="models"):
        build({"models": "demo"})
    with pytest.raises(InputError, match="two models"):
        application(["a/demo", "b/demo"], ServeOptions(), RayOptions())
