"""llama.cpp's own server, and its benchmark of rows together, built here from the source in llama-cpp-python's package.

python benchmarks/serving/llama_server.py install --work DIR
python benchmarks/serving/llama_server.py convert --work DIR --checkpoint CKPT
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PEERS = Path(__file__).parent.parent / "peers"
PACKAGE = "llama-cpp-python==0.3.36"
TARGETS = ("llama-server", "llama-batched-bench", "llama-bench", "llama-quantize")
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
           "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_OPENSSL=OFF")  # fmt: skip
PORT = 8471
SLOT_TOKENS = 512
"""Context of a row: the longest prompt and answer fit."""


def binary(work: Path, name: str) -> Path:
    """One of its programs."""
    return work / "llama.cpp" / "build" / "bin" / name


def install(work: Path) -> None:
    """Fetch and build; nothing where it is there already."""
    folder, python = work / "llama.cpp", work / "environments" / "llama_server" / "bin" / "python"
    if all(binary(work, name).exists() for name in TARGETS):
        return
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    pip: list[str | Path] = [python, "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "cmake", "ninja", "numpy", "gguf"], check=True)
    subprocess.run([*pip, "download", "--quiet", "--no-deps", "--no-binary=:all:", "-d", work, PACKAGE], check=True)
    (archive,) = work.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    (work / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp").rename(folder)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    configure = ["cmake", "-G", "Ninja", "-B", "build", *OPTIONS]
    subprocess.run(configure, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    build = ["cmake", "--build", "build", "-j", "2", "--target", *TARGETS]
    subprocess.run(build, cwd=folder, env=environment, check=True, stdout=sys.stderr)


def model(work: Path, checkpoint: Path, form: str = "q8_0") -> Path:
    """Where a converted one lies."""
    return work / "models" / checkpoint.name / f"llama_server-{form}.gguf"


def convert(work: Path, checkpoint: Path, form: str = "q8_0") -> None:
    """An F16 file, and out of it the form."""
    f16, out = model(work, checkpoint, "f16"), model(work, checkpoint, form)
    f16.parent.mkdir(parents=True, exist_ok=True)
    python = work / "environments" / "llama_server" / "bin" / "python"
    if not f16.exists():
        write = "import llama_cpp as peer; peer.write_f16(*map(pathlib.Path, sys.argv[1:]))"
        script = f"import pathlib, sys; sys.path.insert(0, {str(PEERS)!r}); {write}"
        subprocess.run([python, "-c", script, checkpoint, f16], check=True)
    if not out.exists():
        quantize: list[str | Path] = [binary(work, "llama-quantize"), f16, out, form.upper(), "2"]
        subprocess.run(quantize, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def served(work: Path, checkpoint: Path, rows: int, threads: int) -> Iterator[str]:
    """Its address, while it answers."""
    command: list[str | Path] = [
        binary(work, "llama-server"), "-m", model(work, checkpoint), "-t", str(threads), "-np", str(rows),
        "-c", str(rows * SLOT_TOKENS), "--port", str(PORT), "--no-webui",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{PORT}"
    try:
        while not answers(address):
            if process.poll() is not None:
                sys.exit(f"llama-server ended with {process.returncode}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    """Whether it is ready."""
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.HTTPError:
        return False


def together(work: Path, checkpoint: Path, rows: int, threads: int) -> float:
    """Tokens a second of rows that decode 64 tokens behind 128 each."""
    command: list[str | Path] = [
        binary(work, "llama-batched-bench"), "-m", model(work, checkpoint), "-t", str(threads), "-c",
        str(rows * 256), "-b", "512", "-npp", "128", "-ntg", "64", "-npl", str(rows), "--output-format", "jsonl",
    ]  # fmt: skip
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    (line,) = (json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    return float(line["speed_tg"])


def main() -> None:
    """Install or convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("install", "convert"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    asked = parser.parse_args()
    if asked.command == "install":
        install(asked.work)
    else:
        convert(asked.work, asked.checkpoint)


if __name__ == "__main__":
    main()
