"""The server's image says what the package says: it is built elsewhere, its words are held here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from glm_export.terminal.serving.serve import serve

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "server.Dockerfile").read_text(encoding="utf-8")


def lists(instruction: str) -> list[list[str]]:
    """An instruction's words, where it is a list."""
    return [json.loads(found) for found in re.findall(rf"^{instruction} (\[.*\])$", TEXT, re.M)]


def test_its_files_are_there_and_its_ranges_are_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch")]
    assert f"'{torch}'" in TEXT
    for source in re.findall(r"^COPY (?!--from)(\S+) ", TEXT, re.M):
        assert (ROOT / source).exists()
    for stage in re.findall(r"^COPY --from=(\S+)", TEXT, re.M):
        assert f" AS {stage}" in TEXT
    assert "USER 10001" in TEXT


def test_its_command_is_one_of_ours() -> None:
    (entry,), (models,) = lists("ENTRYPOINT"), lists("CMD")
    assert entry[:2] == ["glm-export", "serve"]
    context = serve.make_context("serve", [*entry[2:], *models])
    assert context.params["host"] == "0.0.0.0"
    assert context.params["models"] == ("demo", "demo-glm")
    health = next(json.loads(line.strip()) for line in TEXT.splitlines() if line.strip().startswith('["python"'))
    compile(health[2], "health", "exec")
    assert "/health" in health[2]


def test_compose_starts_the_same_image() -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]["server"]
    built = ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]
    assert built.resolve() == ROOT / "deploy" / "server.Dockerfile"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
