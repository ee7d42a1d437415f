"""Train the second embedded model: the 2022 GLM's architecture and objective, filling blanked lines of Tang poems.

    python examples/train_infilling.py --out infilling-checkpoint

Two cores, about fifteen minutes, seeded. Writes a folder in the layout GLM was published in: ``config.json``,
``pytorch_model.bin`` (float16), ``cog-pretrain.model``, ``added_tokens.json`` and the tokenizer's small files.

The corpus is the poems of at most eight lines. Batches come from the pretraining objective: mostly sentences ([sMASK],
a line each), some spans ([MASK]) and documents ([gMASK]).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch.nn.utils import clip_grad_norm_

from glm_export import families
from glm_export.modeling import Decoder
from glm_export.objective import InfillingCollator, InfillingTokens, Objective, attention_mask
from glm_export.objective.loss import infilling_loss
from glm_export.tokenizers.infilling import InfillingTokenizer, load_infilling_tokenizer

POEMS = Path(__file__).parent.parent / "glm_export" / "embedded" / "tang_poems.jsonl"
MOST_LINES = 8
SPECIAL = (
    "<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNUSED1]", "[UNUSED2]",
    "<|startofpiece|>", "<|endofpiece|>", "[sMASK]", "[gMASK]",
)  # fmt: skip
OBJECTIVE = Objective(bert_prob=0.25, gap_sentence_prob=0.6, gap_sentence_ratio=0.25, gpt_min_ratio=0.5, task_mask=True)


def write_tokenizer(texts: list[str], folder: Path) -> int:
    """SentencePiece with one piece a character, and the special tokens numbered after it; returns the vocabulary."""
    characters = sorted(set("".join(texts)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=len(characters) + 5,
        character_coverage=1.0, normalization_rule_name="identity", user_defined_symbols=["<n>"],
        add_dummy_prefix=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "cog-pretrain.model").write_bytes(model.getvalue())
    first = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    added = {token: first + index for index, token in enumerate(SPECIAL)}
    roles = {
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "cls_token": "[CLS]", "mask_token": "[MASK]",
        "unk_token": "[UNK]",
    }  # fmt: skip
    extra = {"additional_special_tokens": ["<|startofpiece|>", "<|endofpiece|>", "[gMASK]", "[sMASK]"]}
    for name, values in (
        ("added_tokens.json", added),
        ("special_tokens_map.json", roles | extra),
        ("tokenizer_config.json", roles | extra | {"tokenizer_class": "GLMChineseTokenizer"}),
    ):
        (folder / name).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return first + len(SPECIAL)


def official_config(vocab_size: int) -> dict[str, object]:
    """``config.json`` in GLM's keys."""
    return {
        "architectures": ["GLMModel"], "model_type": "glm", "attention_dropout_prob": 0.1, "attention_scale": 1.0,
        "block_position_encoding": True, "embedding_dropout_prob": 0.1, "hidden_size": 192, "initializer_range": 0.02,
        "max_sequence_length": 255, "num_attention_heads": 6, "num_layers": 4, "output_dropout_prob": 0.1,
        "output_predict": True, "parallel_output": True, "pool_token": "cls", "relative_encoding": False,
        "spell_func": "lstm", "spell_length": None, "torch_dtype": "float16", "vocab_size": vocab_size,
    }  # fmt: skip


def objective_tokens(tokenizer: InfillingTokenizer) -> InfillingTokens:
    """The ids the objective needs, from the tokenizer."""
    masks = tokenizer.mask_ids
    return InfillingTokens(
        enc=tokenizer.cls_id, eos=tokenizer.eos_id, mask=masks["[MASK]"], smask=masks["[sMASK]"],
        gmask=masks["[gMASK]"], sop=tokenizer.sop_id, eop=tokenizer.eop_id,
        sentence_ends=tokenizer.sentence_end_ids,
    )  # fmt: skip


def train(model: Decoder, collate: InfillingCollator, samples: list[list[int]], *, epochs: int, seed: int) -> None:
    """AdamW with a one-cycle schedule; every batch is blanked anew."""
    order = random.Random(seed)
    size, rate = 16, 3e-3
    steps = epochs * -(-len(samples) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    started, count = time.perf_counter(), 0
    for epoch in range(epochs):
        # Poems of like length together, in random order.
        shuffled = sorted(samples, key=lambda ids: len(ids) + order.random() * 8)
        groups = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        order.shuffle(groups)
        total = 0.0
        for group in groups:
            batch = collate(group, seed=count)
            count += 1
            ids, targets, counted, positions = (
                torch.from_numpy(np.ascontiguousarray(array))
                for array in (batch.input_ids, batch.target_ids, batch.loss_mask, batch.position_ids)
            )
            mask = torch.from_numpy(attention_mask(batch.sep, ids.shape[1]))
            loss = infilling_loss(model(ids, mask, positions).logits, targets, counted)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epoch % 10 == 9:
            seconds = time.perf_counter() - started
            print(f"epoch {epoch + 1}/{epochs}  loss {total / len(groups):.4f}  {seconds:.0f} s", flush=True)


def main() -> None:
    """Train and write the checkpoint."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--epochs", type=int, default=360)
    options.add_argument("--seed", type=int, default=7)
    arguments = options.parse_args()
    torch.manual_seed(arguments.seed)
    poems = [json.loads(line)["lines"] for line in POEMS.read_text(encoding="utf-8").splitlines()]
    texts = ["".join(lines) for lines in poems if len(lines) <= MOST_LINES]
    arguments.out.mkdir(parents=True)
    values = official_config(-(-write_tokenizer(texts, arguments.out) // 64) * 64)
    (arguments.out / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    tokenizer = load_infilling_tokenizer(arguments.out)
    samples = [tokenizer.encode(text) for text in texts]
    model = Decoder(families.read_config(values))
    for table in (model.embedding, model.position_embedding, model.block_embedding):
        torch.nn.init.normal_(table.weight, std=0.02)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(samples)} poems, {sum(map(len, samples))} tokens, {parameters} parameters", flush=True)
    train(
        model, InfillingCollator(OBJECTIVE, objective_tokens(tokenizer)), samples,
        epochs=arguments.epochs, seed=arguments.seed,
    )  # fmt: skip
    state, rules = model.state_dict(), families.load("glm_infilling").weight_map(model.config).rules
    torch.save({rule.sources[0]: state[rule.target].half() for rule in rules}, arguments.out / "pytorch_model.bin")


if __name__ == "__main__":
    main()
