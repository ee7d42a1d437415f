"""transformers on PyTorch, eager, and with its forward pass compiled for a cache of fixed size (``-compiled``).

python benchmarks/peers/transformers_eager.py install --work DIR
python benchmarks/peers/transformers_eager.py measure --work DIR --checkpoint CKPT --form bf16
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from protocol import CONTEXT, NEW_TOKENS, PROMPT_TOKENS, THREADS, TORCH, Form, Generate, Peer, main

FORMS = {
    "fp32": Form(32, "link", {"dtype": "float32"}),
    "bf16": Form(16, "link", {"dtype": "bfloat16"}),
    "bf16-compiled": Form(16, "link", {"dtype": "bfloat16", "compile": "1"}),
}


def convert(checkpoint: Path, out: Path, model: str) -> None:  # noqa: ARG001
    """It reads the checkpoint as it is."""
    out.symlink_to(checkpoint.resolve())


def load(model: Path, form: Form) -> Generate:
    """The model called step by step, without the generation loop around it."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

    torch.set_num_threads(THREADS)
    dtype = getattr(torch, form.settings["dtype"])
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    compiled = "compile" in form.settings
    step = torch.compile(network, dynamic=False) if compiled else network
    longest = max(PROMPT_TOKENS, CONTEXT + NEW_TOKENS) + 64

    @torch.inference_mode()
    def generate(ids: list[int], count: int) -> list[float]:
        cache = (
            StaticCache(config=network.config, max_cache_len=longest)
            if compiled
            else DynamicCache(config=network.config)
        )
        times: list[float] = []
        started = time.perf_counter()
        following = torch.tensor([ids])
        for _ in range(count):
            logits = step(following, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            following = logits[:, -1:].argmax(-1)
            times.append(time.perf_counter() - started)
        return times

    return generate


PEER = Peer(name="transformers_eager", packages=("transformers>=5,<6", TORCH), forms=FORMS, convert=convert, load=load)

if __name__ == "__main__":
    main(PEER)
