"""The optimisers that a recipe can name.

Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024)
orthogonalises the momentum of a matrix. It is for the matrices of linear layers alone:
a row of the embedding, a gain or a packed triangular rotor has no singular values worth
levelling, so AdamW takes those. With the scaling of Liu et al., "Muon is scalable for
LLM training", 2025, equation 4 (`match_rms_adamw`), an update of Muon is as large as one
of AdamW: one learning rate and one weight decay serve both.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

BETAS = (0.9, 0.95)


class MuonWithAdamW(Optimizer):
    """Muon for some matrices and AdamW for the rest, behind one interface.

    Schedulers and checkpoints see one optimiser: its groups and its state are those of
    both, and `state_dict` brings both back.

    Args:
        matrices: 2-D parameters for Muon.
        decayed: Other parameters that weight decay acts on.
        undecayed: Parameters that it leaves alone.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        decayed: list[nn.Parameter],
        undecayed: list[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        self._muon = Muon(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = AdamW(
            [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": undecayed, "weight_decay": 0.0},
            ],
            lr=lr,
            betas=BETAS,
            fused=True,
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step with both.

        Args:
            closure: Computes the loss again, as for any optimiser.

        Returns:
            What `closure` returned; None without one.
        """
        # A loaded checkpoint brings new groups and a new state.
        self._muon.param_groups, self._adamw.param_groups = (
            self.param_groups[:1],
            self.param_groups[1:],
        )
        self._muon.state = self._adamw.state = self.state
        loss = self._muon.step(closure)  # type: ignore[no-untyped-call]
        self._adamw.step()
        return loss


def muon_with_adamw(
    model: nn.Module,
    decayed_names: list[str],
    *,
    lr: float,
    weight_decay: float,
    linear: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> MuonWithAdamW:
    """Share the parameters of a causal language model out between Muon and AdamW.

    Args:
        model: A model with `get_input_embeddings` and `get_output_embeddings`.
        decayed_names: Parameters that weight decay acts on.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        linear: Classes of linear layers, each with a 2-D `weight`.

    Returns:
        The optimiser; Muon has the weights of the linear layers, the head excepted.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    apart = {id(parameter) for end in ends for parameter in end.parameters()}
    of_linear_layers = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, linear) and id(module.weight) not in apart
    }
    matrices, decayed, undecayed = [], [], []
    for name, parameter in model.named_parameters():
        if id(parameter) in of_linear_layers:
            matrices.append(parameter)
        elif name in decayed_names:
            decayed.append(parameter)
        else:
            undecayed.append(parameter)
    return MuonWithAdamW(matrices, decayed, undecayed, lr=lr, weight_decay=weight_decay)
