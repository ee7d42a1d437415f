"""Write a checkpoint of random weights in a publisher's layout and real size, shard by shard.

    python benchmarks/make_checkpoint.py chatglm2-6b /tmp/chatglm2-6b

Weights are normal with a standard deviation of 0.02, seeded; memory stays at one tensor.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import torch

from glm_export import families

CHATGLM2 = {
    "_name_or_path": "THUDM/chatglm2-6b", "model_type": "chatglm", "architectures": ["ChatGLMModel"],
    "add_bias_linear": False, "add_qkv_bias": True, "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False, "attention_softmax_in_fp32": True,
    "fp32_residual_connection": False, "layernorm_epsilon": 1e-5, "multi_query_attention": True,
    "multi_query_group_num": 2, "original_rope": True, "post_layer_norm": True, "rmsnorm": True,
    "use_cache": True, "torch_dtype": "float16", "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SHAPES = {
    "chatglm2-6b": CHATGLM2
    | {
        "hidden_size": 4096, "kv_channels": 128, "num_attention_heads": 32, "num_layers": 28, "ffn_hidden_size": 13696,
        "padded_vocab_size": 65024, "seq_length": 32768,
    },
    # The 1.4 B shape most figures of this project are taken on.
    "medium": CHATGLM2
    | {
        "hidden_size": 2048, "kv_channels": 128, "num_attention_heads": 16, "num_layers": 24, "ffn_hidden_size": 6144,
        "padded_vocab_size": 59264, "seq_length": 8192,
    },
    # Several engines on one small machine.
    "small": CHATGLM2
    | {
        "hidden_size": 1024, "kv_channels": 128, "num_attention_heads": 8, "num_layers": 12, "ffn_hidden_size": 3072,
        "padded_vocab_size": 32000, "seq_length": 8192,
    },
    # To see that code runs; a second on any machine.
    "tiny": CHATGLM2
    | {
        "hidden_size": 256, "kv_channels": 128, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 512,
        "padded_vocab_size": 2048, "seq_length": 2048,
    },
}  # fmt: skip
NATIVE = {
    "model_type": "glm", "architectures": ["GlmForCausalLM"], "attention_bias": True, "hidden_act": "silu",
    "head_dim": 128, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float16", "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# The same sizes in the layout of transformers' own class: the form that other tools read.
SHAPES |= {
    f"{name}-native": NATIVE
    | {
        "hidden_size": values["hidden_size"], "num_attention_heads": values["num_attention_heads"],
        "num_hidden_layers": values["num_layers"], "intermediate_size": values["ffn_hidden_size"],
        "vocab_size": values["padded_vocab_size"], "max_position_embeddings": values["seq_length"],
    }
    for name, values in SHAPES.items()
}  # fmt: skip
# Published sizes of zai-org/glm-edge-1.5b-chat, in its own (native) layout.
SHAPES["glm-edge-1.5b"] = NATIVE | {
    "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 28,
    "intermediate_size": 6144, "vocab_size": 59264, "max_position_embeddings": 8192, "attention_bias": False,
    "partial_rotary_factor": 1.0, "tie_word_embeddings": True,
}  # fmt: skip
MIXTURE = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "attention_bias": True, "hidden_act": "silu",
    "head_dim": 128, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "rope_theta": 1000000, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0, "use_qk_norm": False, "num_nextn_predict_layers": 0, "tie_word_embeddings": False,
    "torch_dtype": "float16", "eos_token_id": [2], "pad_token_id": 0,
}  # fmt: skip
SHAPES |= {
    # Published sizes of zai-org/GLM-4.5-Air; its 46 layers are 211 GB, so say --layers.
    "glm-4.5-air": MIXTURE
    | {
        "hidden_size": 4096, "num_attention_heads": 96, "num_key_value_heads": 8, "num_hidden_layers": 46,
        "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151552, "max_position_embeddings": 131072,
    },
    # The same cut to a quarter: half as wide, half the experts, six layers; a token still has one expert in sixteen.
    "experts": MIXTURE
    | {
        "hidden_size": 2048, "num_attention_heads": 24, "num_key_value_heads": 4, "num_hidden_layers": 6,
        "intermediate_size": 5472, "moe_intermediate_size": 704, "n_routed_experts": 64, "num_experts_per_tok": 4,
        "vocab_size": 37888, "max_position_embeddings": 8192,
    },
}  # fmt: skip
# ChatGLM-6B's layout at 0.7 B: as many heads for keys as for queries, so its cache is large beside its weights.
SHAPES["medium-prefix"] = {
    "_name_or_path": "THUDM/chatglm-6b",
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "hidden_size": 2048,
    "inner_hidden_size": 8192,
    "num_attention_heads": 16,
    "num_layers": 12,
    "vocab_size": 32768,
    "max_sequence_length": 4096,
    "layernorm_epsilon": 1e-5,
    "position_encoding_2d": True,
    "use_cache": True,
    "torch_dtype": "float16",
    "bos_token_id": 32764,
    "eos_token_id": 32765,
    "mask_token_id": 32760,
    "gmask_token_id": 32761,
    "pad_token_id": 3,
}
SHARD_BYTES = 1_900_000_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape", choices=sorted(SHAPES))
    options.add_argument("out", type=Path)
    options.add_argument("--layers", type=int, help="of a native shape, so many only")
    options.add_argument("--zeros", action="store_true", help="sparse files, which take no disk: to see memory alone")
    arguments = options.parse_args()
    values = SHAPES[arguments.shape] | ({"num_hidden_layers": arguments.layers} if arguments.layers else {})
    config = families.read_config(values)
    rules = families.load(config.family).weight_map(config).rules
    # A tied head is read from the embedding, which is written once.
    tensors = list(
        {name: shape for rule in rules for name, shape in zip(rule.sources, rule.shapes, strict=True)}.items()
    )
    arguments.out.mkdir(parents=True)
    (arguments.out / "config.json").write_text(json.dumps(values, indent=2))
    shards = split(tensors)
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for index, shard in enumerate(shards):
        name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(arguments.out / name, shard, None if arguments.zeros else generator)
        weight_map |= dict.fromkeys((tensor for tensor, _ in shard), name)
        print(f"wrote {name}", flush=True)
    index_json = {"metadata": {"total_size": sum(size(shape) for _, shape in tensors)}, "weight_map": weight_map}
    (arguments.out / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2))


def size(shape: tuple[int, ...]) -> int:
    return 2 * torch.Size(shape).numel()


def split(tensors: list[tuple[str, tuple[int, ...]]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in tensors:
        if filled + size(shape) > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size(shape)
    return shards


def write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], generator: torch.Generator | None) -> None:
    """The safetensors format written as a stream: the library would hold the whole shard in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors:
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size(shape)]}
        offset += size(shape)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        if generator is None:
            file.truncate(8 + len(encoded) + offset)
            return
        for name, shape in tensors:
            if name.endswith("layernorm.weight"):
                file.write(torch.ones(shape, dtype=torch.float16).numpy().data)
                continue
            # One block of fresh random numbers a tensor, repeated: fast, and no two tensors are alike.
            block = torch.randn(min(torch.Size(shape).numel(), 1 << 22), generator=generator).mul_(0.02).half()
            left = torch.Size(shape).numel()
            while left:
                part = block[: min(left, block.numel())]
                file.write(part.numpy().data)
                left -= part.numel()


if __name__ == "__main__":
    main()
