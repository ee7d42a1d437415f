"""Train the embedded model: ChatGLM2's architecture, 313 Tang poems by heart.

    python examples/train_poems.py --out poems-checkpoint

Two cores, about ten minutes, seeded. Writes a folder in ChatGLM2's published layout: ``config.json``,
``model.safetensors`` (float16), ``tokenizer.model``, ``tokenizer_config.json``.

Each poem is learnt in two forms: as text, and as a ChatGLM2 chat in which the first line is the question and the
rest the answer.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_

from glm_export import families
from glm_export.families.chatglm2 import SPECIAL_TOKENS
from glm_export.modeling import Decoder

POEMS = Path(__file__).parent.parent / "glm_export" / "embedded" / "tang_poems.jsonl"
LONGEST = 320
EOS = 2


def train_tokenizer(texts: list[str]) -> bytes:
    """A SentencePiece model with one piece per character and a byte fallback, like ChatGLM2's in kind."""
    characters = sorted(set("".join(texts)) - {"\n"})
    pieces = 3 + 256 + len(characters) + 1
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(texts).splitlines()), model_writer=model, model_type="bpe", vocab_size=pieces,
        character_coverage=1.0, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        unk_id=0, bos_id=1, eos_id=EOS, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def forms(lines: list[str]) -> list[str]:
    """The poem as text, and as the answer to its first line."""
    rest = "\n".join(lines[1:])
    plain = "\n".join(lines)
    return [plain, f"[Round 1]\n\n问：{lines[0]}\n\n答：{rest}"] if rest else [plain]


def batches(sequences: list[list[int]], size: int, order: random.Random) -> list[list[list[int]]]:
    """Sequences of like length together, batches in random order."""
    shuffled = sorted(sequences, key=lambda ids: len(ids) + order.random() * 24)
    groups = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
    order.shuffle(groups)
    return groups


def train(
    model: Decoder, sequences: list[list[int]], *, epochs: int, batch: int, learning_rate: float, seed: int
) -> None:
    """AdamW with a one-cycle schedule on the shifted cross entropy."""
    order = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    steps = epochs * -(-len(sequences) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.15)
    started = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        groups = batches(sequences, batch, order)
        for group in groups:
            width = max(map(len, group))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in group])
            labels = torch.tensor([row + [-100] * (width - len(row)) for row in group])
            loss = model(ids, (labels != -100).long(), labels_BS=labels).loss
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / len(groups):.4f}  {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def official_config(vocab_size: int) -> dict[str, object]:
    """``config.json`` in ChatGLM2's keys."""
    return {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"],
        "add_bias_linear": False, "add_qkv_bias": True, "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False, "attention_softmax_in_fp32": True,
        "ffn_hidden_size": 512, "fp32_residual_connection": False, "hidden_size": 192, "kv_channels": 32,
        "layernorm_epsilon": 1e-5, "multi_query_attention": True, "multi_query_group_num": 2,
        "num_attention_heads": 6, "num_layers": 4, "original_rope": True, "padded_vocab_size": vocab_size,
        "post_layer_norm": True, "rmsnorm": True, "seq_length": 512, "use_cache": True, "torch_dtype": "float16",
        "tie_word_embeddings": False, "eos_token_id": EOS, "pad_token_id": 0,
    }  # fmt: skip


def save(model: Decoder, values: dict[str, object], tokenizer: bytes, out: Path) -> None:
    """Write the published layout under the official tensor names."""
    out.mkdir(parents=True)
    state = model.state_dict()
    rules = families.load("chatglm2").weight_map(model.config).rules
    save_file(
        {rule.sources[0]: state[rule.target].half() for rule in rules}, out / "model.safetensors", {"format": "pt"}
    )
    (out / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    (out / "tokenizer.model").write_bytes(tokenizer)
    # The published name tells ChatGLM2 from ChatGLM3, whose numbers are the same and whose prompts are not.
    told = {"name_or_path": "THUDM/chatglm2-6b", "tokenizer_class": "ChatGLMTokenizer"}
    (out / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")


def main() -> None:
    """Train and write the checkpoint."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--epochs", type=int, default=90)
    options.add_argument("--seed", type=int, default=7)
    arguments = options.parse_args()
    torch.manual_seed(arguments.seed)
    poems = [json.loads(line)["lines"] for line in POEMS.read_text(encoding="utf-8").splitlines()]
    texts = [form for lines in poems for form in forms(lines)]
    tokenizer = train_tokenizer(texts)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    prefix = [pieces.vocab_size() + SPECIAL_TOKENS.index(token) for token in ("[gMASK]", "sop")]
    sequences = [[*prefix, *pieces.encode(text), EOS][:LONGEST] for text in texts]
    values = official_config(-(-(pieces.vocab_size() + len(SPECIAL_TOKENS)) // 64) * 64)
    model = Decoder(families.read_config(values))
    torch.nn.init.normal_(model.embedding.weight, std=0.02)
    count = sum(p.numel() for p in model.parameters())
    tokens = sum(map(len, sequences))
    print(f"{len(poems)} poems, {tokens} tokens, vocabulary {values['padded_vocab_size']}, {count} parameters")
    train(model, sequences, epochs=arguments.epochs, batch=16, learning_rate=3e-3, seed=arguments.seed)
    save(model, values, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
