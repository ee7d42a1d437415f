"""llama.cpp through llama-cpp-python, built here from its source for this machine.

    python benchmarks/peers/llama_cpp.py install --work DIR
    python benchmarks/peers/llama_cpp.py convert --work DIR --checkpoint CKPT --form q8_0
    python benchmarks/peers/llama_cpp.py measure --work DIR --checkpoint CKPT --form q8_0

Converting first writes an F16 file, then has llama.cpp quantize it; what ``convert`` reports for any other form is the
quantizing alone once the F16 file is there.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# At the end of the path: this file is named as the package it measures, and the package must be found first.
sys.path.append(str(Path(__file__).parent))

from protocol import CONTEXT, NEW_TOKENS, PROMPT_TOKENS, THREADS, Form, Generate, Peer, main

FILE_TYPES = {"q8_0": 7, "q4_0": 2, "q4_k_m": 15, "bf16": 32}
"""llama.cpp's numbers of its file types."""
FORMS = {
    "f16": Form(16, "f16"), "bf16": Form(16, "bf16"), "q8_0": Form(8, "q8_0"),
    "q4_0": Form(4, "q4_0"), "q4_k_m": Form(4, "q4_k_m"),
}  # fmt: skip
LAYER_TENSORS = {
    "attn_norm.weight": ("input_layernorm.weight",),
    "attn_qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn_qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attn_output.weight": ("self_attn.o_proj.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
    "ffn_up.weight": ("mlp.gate_up_proj.weight",),
    "ffn_down.weight": ("mlp.down_proj.weight",),
}
"""llama.cpp's name → the names of transformers' native GLM, laid one after another."""
MIXTURE_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    **{f"attn_{name}.{part}": f"self_attn.{name}_proj.{part}" for name in "qkv" for part in ("weight", "bias")},
    "attn_output.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
}
"""The same of GLM-4.5, beside its MLPs."""
GATED = ("gate", "up", "down")


def convert(checkpoint: Path, out: Path, model: str) -> None:
    """Write a GGUF file."""
    f16 = out.with_name(out.name.replace(model, "f16"))
    if not f16.exists():
        write_f16(checkpoint, f16)
    if model != "f16":
        quantize(f16, out, FILE_TYPES[model])


def write_f16(checkpoint: Path, out: Path) -> None:
    """The checkpoint as a float16 GGUF file, written tensor by tensor."""
    import gguf
    import numpy as np

    values = json.loads((checkpoint / "config.json").read_text())
    part = out.with_name(out.name + ".part")
    mixture = values["model_type"] == "glm4_moe"
    writer = gguf.GGUFWriter(part, "glm4moe" if mixture else "chatglm")
    describe(writer, values)
    describe_tokenizer(writer, checkpoint)
    if mixture:
        describe_mixture(writer, values)
    arrays = dict(read_tensors(checkpoint))
    tensors: list[tuple[str, list[Any]]] = [
        ("token_embd.weight", [arrays["model.embed_tokens.weight"]]),
        ("output_norm.weight", [arrays["model.norm.weight"]]),
        ("output.weight", [arrays["lm_head.weight"]]),
    ]
    for layer in range(values["num_hidden_layers"]):
        table = mixture_tensors(values, layer) if mixture else LAYER_TENSORS
        for name, sources in table.items():
            tensors.append((f"blk.{layer}.{name}", [arrays[f"model.layers.{layer}.{source}"] for source in sources]))
    # llama.cpp keeps vectors and routers in float32.
    singles = {name for name, parts in tensors if parts[0].ndim == 1 or "gate_inp" in name}
    for name, parts in tensors:
        rows = sum(part.shape[0] for part in parts)
        stack = (len(parts), rows // len(parts)) if "_exps" in name else (rows,)
        shape = (*stack, *parts[0].shape[1:])
        dtype = np.dtype(np.float32 if name in singles else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, parts in tensors:
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        writer.write_tensor_data(whole.astype(np.float32) if name in singles else whole)
    writer.close()
    part.rename(out)


def describe(writer: Any, values: dict[str, Any]) -> None:
    """The sizes llama.cpp reads."""
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_key_length(values["head_dim"])
    writer.add_value_length(values["head_dim"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    writer.add_rope_dimension_count(int(values["head_dim"] * values["partial_rotary_factor"]))
    writer.add_rope_freq_base(values["rope_theta"])
    writer.add_file_type(1)
    writer.add_vocab_size(values["vocab_size"])


def describe_tokenizer(writer: Any, checkpoint: Path) -> None:
    """Names of its tokens, which a server writes; without any, ids have to do."""
    path = checkpoint / "tokenizer.json"
    names = json.loads(path.read_text())["model"]["vocab"] if path.exists() else {}
    if len(names) < json.loads((checkpoint / "config.json").read_text())["vocab_size"]:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(names, key=names.__getitem__))
    writer.add_token_types([1] * len(names))
    # It wants merges; what is asked here is ids.
    writer.add_token_merges(["t 2"])


def describe_mixture(writer: Any, values: dict[str, Any]) -> None:
    """What it reads of GLM-4.5 besides."""
    import gguf

    writer.add_expert_count(values["n_routed_experts"])
    writer.add_expert_used_count(values["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(values["moe_intermediate_size"])
    writer.add_expert_shared_count(values["n_shared_experts"])
    writer.add_leading_dense_block_count(values["first_k_dense_replace"])
    writer.add_expert_weights_scale(values["routed_scaling_factor"])
    writer.add_expert_weights_norm(values["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def mixture_tensors(values: dict[str, Any], layer: int) -> dict[str, tuple[str, ...]]:
    """llama.cpp's name of a layer's tensors → those it is made of; experts' are stacked."""
    table: dict[str, tuple[str, ...]] = {name: (source,) for name, source in MIXTURE_TENSORS.items()}
    if layer < values["first_k_dense_replace"]:
        return table | {f"ffn_{name}.weight": (f"mlp.{name}_proj.weight",) for name in GATED}
    experts = range(values["n_routed_experts"])
    table |= {"ffn_gate_inp.weight": ("mlp.gate.weight",), "exp_probs_b.bias": ("mlp.gate.e_score_correction_bias",)}
    for name in GATED:
        table[f"ffn_{name}_exps.weight"] = tuple(f"mlp.experts.{number}.{name}_proj.weight" for number in experts)
        table[f"ffn_{name}_shexp.weight"] = (f"mlp.shared_experts.{name}_proj.weight",)
    return table


def read_tensors(checkpoint: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor as a view of the memory-mapped files."""
    import numpy as np

    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        data = np.memmap(path, np.uint8, "r", offset=8 + size)
        for name, spec in header.items():
            if name != "__metadata__":
                start, end = spec["data_offsets"]
                yield name, data[start:end].view(np.float16).reshape(spec["shape"])


def quantize(source: Path, out: Path, file_type: int) -> None:
    """Let llama.cpp quantize an F16 file, with its own choice of each tensor's type."""
    import llama_cpp

    silence()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = THREADS
    parameters.ftype = file_type
    part = out.with_name(out.name + ".part")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(parameters)):
        sys.exit(f"llama.cpp could not quantize {source} to file type {file_type}")
    part.rename(out)


def silence() -> None:
    """llama.cpp logs every tensor otherwise."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:  # noqa: ARG001
        if level >= 4:
            sys.stderr.write(text.decode(errors="replace"))

    llama_cpp.llama_log_set(ignore, ctypes.c_void_p(0))
    # The library keeps a bare pointer to it.
    globals()["_kept"] = ignore


def load(model: Path, form: Form) -> Generate:
    """Its low-level interface: the high-level one copies logits in Python and wants a tokenizer."""
    import llama_cpp
    import numpy as np

    silence()
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    network = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = max(PROMPT_TOKENS, CONTEXT + NEW_TOKENS) + 64
    settings.n_batch = settings.n_ubatch = PROMPT_TOKENS
    settings.n_threads = settings.n_threads_batch = THREADS
    for name, value in form.settings.items():
        setattr(settings, name, int(value))
    context = llama_cpp.llama_init_from_model(network, settings)
    if not context:
        sys.exit(f"llama.cpp could not load {model}")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(network))

    def read(ids: list[int]) -> int:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        # This batch asks for the logits of its last token only.
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            sys.exit("llama_decode failed")
        pointer = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(pointer, (vocab_size,)).argmax())

    def generate(ids: list[int], count: int) -> list[float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        times: list[float] = []
        started = time.perf_counter()
        following = ids
        for _ in range(count):
            following = [read(following)]
            times.append(time.perf_counter() - started)
        return times

    return generate


PEER = Peer(
    name="llama_cpp",
    # Without cmake and ninja from here the build takes the system's, which may be too old.
    packages=(
        "cmake",
        "ninja",
        "numpy",
        "gguf",
        "--then",
        "--no-binary=llama-cpp-python",
        "llama-cpp-python==0.3.36",
    ),
    forms=FORMS,
    convert=convert,
    load=load,
    build_environment={"CMAKE_BUILD_PARALLEL_LEVEL": "2", "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF"},
)

if __name__ == "__main__":
    main(PEER)
