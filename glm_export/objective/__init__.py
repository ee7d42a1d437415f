"""GLM's pretraining objective: autoregressive blank infilling, as a seeded collator.

A sample loses spans, sentences or most of a document; each is replaced by one mask (part A), and the model predicts
the lost tokens behind it, one after another (part B). Part A is seen from everywhere, part B from its future alone::

    tokens = InfillingTokens(enc=…, eos=…, mask=…, sop=…, eop=…)
    collate = InfillingCollator(Objective(), tokens)
    batch = collate([[enc, 5, 8, …, eos], …], seed=step)
    mask = attention_mask(batch.sep, batch.input_ids.shape[1])

:func:`glm_export.objective.loss.infilling_loss` turns logits and a batch into the loss; it alone needs PyTorch.
Source: arXiv:2103.10360; THUDM/GLM ``blocklm_utils.py``.
"""

from __future__ import annotations

from glm_export.objective.collator import InfillingBatch, InfillingCollator, attention_mask
from glm_export.objective.settings import InfillingTokens, Mode, Objective, sentence_end_ids

__all__ = [
    "InfillingBatch", "InfillingCollator", "InfillingTokens", "Mode", "Objective", "attention_mask",
    "sentence_end_ids",
]  # fmt: skip
