"""Commands and code of the README and the documentation's pages, as they stand there; which are not run, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"console", "python", "text", "json", "yaml", "toml", ""}
A_COMMAND = re.compile(r"(\$ |glm-export |pip |python |curl |make )")

# What no test of this file runs: the page it stands on ("" is all of them), how it begins, and why.
NOT_RUN = (
    # No network here.
    ("", "pip install", "needs the network"),
    ("", "hf download", "needs the network"),
    ("docs/store.md", "glm-export serve s3", "needs a store; tests/store/test_s3.py fetches from one on this machine"),
    ("docs/store.md", "glm-export export https", "needs the network"),
    ("docs/store.md", "glm-export generate http", "needs a server; tests/store/test_http.py has one"),
    ("docs/store.md", "glm-export fetch", "needs a server; tests/store/test_http.py has one"),
    ("docs/store.md", "glm-export cache", "of the user's own cache; tests/store/test_cache.py has one of its own"),
    ("docs/installing.md", "python3.13", "needs the network; tests/house/test_runtime.py has what runs there"),
    ("docs/installing.md", "part/bin", "of that environment; tests/house/test_runtime.py"),
    ("docs/loaders.md", "glm-export deploy", "of a real model's folder; tests/exporter/test_other_programs.py"),
    # What does not end by itself, and who asks it.
    ("", "glm-export serve", "does not end by itself; tests/serving starts it"),
    ("", "glm-export top", "needs a server; tests/serving/metrics/test_top.py has one"),
    ("", "curl", "needs a server; tests/serving has them"),
    # What has an environment of its own.
    ("", "make ", "this suite, and what CONTRIBUTING.md says of the others"),
    ("", ". .venv", "an environment of the reader's"),
    ("", "lm_eval", "an environment of its own; tests/exporter/test_lm_eval.py"),
    ("", "kubectl", "needs a cluster; tests/deployment/kubernetes holds the manifests to their schemas"),
    ("docs/triton.md", "cp ", "needs nvidia-pytriton; tests/serving/triton/test_server.py does it"),
    ("docs/triton.md", "export ", "needs nvidia-pytriton; tests/serving/triton/test_server.py does it"),
    ("docs/triton.md", "triton/", "needs nvidia-pytriton; tests/serving/triton/test_server.py does it"),
    ("docs/engines.md", "glm-export build chatglm2-portable", "needs TensorRT up to 10; tests/engines has its names"),
    ("docs/engines.md", "bash repeat.sh", "tests/deployment/test_explain.py runs it"),
    ("docs/certificates.md", "model_signing", "another tool; tests/certificates runs it"),
    ("docs/certificates.md", "glm-export certify poems-onnx --against demo --key key.pem --certificate",
     "needs certificates; tests/certificates makes them"),
    ("docs/certificates.md", "glm-export verify poems-onnx --certificate-chain", "the same"),
    # Planted faults and trained prefixes, which other tests make.
    ("docs/debugging-parity.md", "glm-export check", "of planted programs; tests/proof/layers makes them"),
    ("docs/prefixes.md", "glm-export", "of a trained prefix; tests/sessions/test_initial_cache.py has one"),
    ("docs/checkpoints.md", "glm-export export BASE", "of adapters; tests/checkpoints/test_adapters.py has some"),
    # Minutes.
    ("docs/quantization.md", "python benchmarks/quantize/integers.py", "minutes; tests/proof/test_on_paper.py"),
    ("docs/choosing.md", "python docs/tools/recipes.py", "minutes; each verb of it is run here"),
    # The README's own test runs these.
    ("README.md", "glm-export", "tests/house/test_readme.py"),
)  # fmt: skip
# Code that is a part of something, and the test that does the same whole.
NOT_RUN_PYTHON = {
    "README.md": "tests/house/test_readme.py",
    "docs/chat.md": "parts of a program: tests/tokenizers/streams, tests/generation/grammars",
    "docs/prefixes.md": "tests/sessions/test_initial_cache.py, with a prefix",
    "docs/ray.md": "needs an extra of Ray's: tests/serving/ray/test_llm.py",
    "docs/serving.md": "needs a server: tests/serving/http/test_clients.py",
    "docs/triton.md": "needs a server: tests/serving/triton/test_server.py",
}


@dataclass(frozen=True, slots=True)
class Block:
    """One fence: its page from the repository's root, the line it begins at, and what is in it."""

    page: str
    line: int
    language: str
    body: str

    @property
    def commands(self) -> list[str]:
        """What a person types, each in one line and without remarks."""
        whole = self.body.replace("\\\n", " ")
        typed = [line[2:] for line in whole.splitlines() if line.startswith("$ ")]
        return [re.sub(r"\s{2,}# .*$", "", line).strip() for line in typed]


def blocks(*languages: str) -> Iterator[Block]:
    """Every fence of every page, in order."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if not languages or found[1] in languages:
                line = text.count("\n", 0, found.start()) + 1
                yield Block(str(path.relative_to(ROOT)), line, found[1], found[2])


def why_not(page: str, command: str) -> str | None:
    """Why a command is not run; None where it is."""
    for where, beginning, reason in NOT_RUN:
        if where in ("", page) and command.startswith(beginning):
            return reason
    return None
