"""The objective's loss of the golden GLM on every golden batch, through PyTorch and through the exported program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.inputs.prefix_feeds import PrefixFeeds
from glm_export.objective import attention_mask
from glm_export.objective.loss import infilling_loss
from tests.helpers.golden_data import Golden
from tests.objective.test_objective import CASES, golden_batch


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_loss_of_every_golden_batch(runtime: str, exported: Callable[[str], OnnxProgram]) -> None:
    checked = 0
    with api.load_session(Golden("glm").folder if runtime == "torch" else exported("glm")) as session:
        for _, case in CASES:
            if case.get("model_loss") is None:
                continue
            batch = golden_batch(case, case["count"])
            length = batch.input_ids.shape[1]
            feeds = PrefixFeeds(
                input_ids=batch.input_ids,
                attention_mask=attention_mask(batch.sep, length),
                position_ids=batch.position_ids,
                real=np.ones(batch.input_ids.shape, bool),
                context_lengths=batch.sep,
                mask_positions=batch.position_ids[:, 0, -1],
            )
            logits = torch.from_numpy(session.prefill(feeds))
            loss = infilling_loss(logits, torch.from_numpy(batch.target_ids), torch.from_numpy(batch.loss_mask))
            assert abs(float(loss) - case["model_loss"]) <= 2e-5, case["count"]
            checked += 1
    assert checked == len(CASES)


def test_training_through_the_objective_lowers_its_loss() -> None:
    """The reference model can be trained with it: twenty steps on one golden batch."""
    from glm_export import families
    from glm_export.modeling import Decoder
    from tests.helpers.tiny import tiny_values

    torch.manual_seed(0)
    model = Decoder(families.read_config(tiny_values("glm_infilling")))
    batch = golden_batch(CASES[0][1], CASES[0][1]["count"])
    ids, targets, counted, positions = map(
        torch.from_numpy, (batch.input_ids, batch.target_ids, batch.loss_mask, batch.position_ids)
    )
    mask = torch.from_numpy(attention_mask(batch.sep, ids.shape[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = infilling_loss(model(ids, mask, positions).logits, targets, counted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
