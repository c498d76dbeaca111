"""What the ranks of a run decide together.

Each rank sees only its own signals, its own disk and its own clock; ranks that decided
alone would end at different steps, and the others would wait for them for ever.
"""

import torch


def any_rank(yes: bool, device: torch.device) -> bool:
    """Whether at least one rank says yes; every rank gets the same answer.

    Args:
        yes: What this rank says.
        device: Where the backend of the process group wants its tensors.

    Returns:
        The common answer; with one process, its own.
    """
    if not torch.distributed.is_initialized():
        return yes
    votes = torch.tensor(float(yes), device=device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
    return bool(votes)
