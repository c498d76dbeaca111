"""A learned gate between two predictions, p = g p_first + (1 - g) p_second.

It is a linear layer to one number, trained by AdamW at a rate of its own
(`pipelines/training/optimisers.py`), never by Muon, which equalises the singular values of matrices
and drives the gate to one side.

Legend: D channels, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["gate_logits", "mix"]


def gate_logits(gate: nn.Linear, hidden: Tensor, facts: Tensor) -> Tensor:
    """Return the logits of g, `(...)`; in training without gradient to the hidden states.

    Args:
        gate: from D + F to 1.
        hidden: `(..., D)`, final hidden states of the network.
        facts: `(..., F)`, of the second prediction.
    """
    hidden = hidden.detach() if gate.training else hidden
    with torch.autocast(hidden.device.type, enabled=False):
        features = torch.cat((hidden.to(facts.dtype), facts), dim=-1)
        logits: Tensor = gate(features.to(gate.weight.dtype))
    return logits.squeeze(-1).to(facts.dtype)


def mix(log_first: Tensor, log_second: Tensor, logits: Tensor) -> Tensor:
    """Return log (g p_first + (1 - g) p_second), of tensors that are broadcast."""
    return torch.logaddexp(
        functional.logsigmoid(logits) + log_first, functional.logsigmoid(-logits) + log_second
    )
