"""The optimisers that a recipe can name, and which parameters each one updates.

Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024)
orthogonalises the momentum of a matrix. It is only for the matrices of linear layers:
a row of the embedding, a gain or a packed triangular rotor has no singular values worth
equalising, so AdamW updates those. With the scaling of `pipelines.training.muon`, an update of
Muon is as large as one of AdamW: one learning rate and one weight decay serve both.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from enigma.bijections.lifting import LiftingConv1x1
from enigma.driven_rotor import DrivenRotor
from enigma.invertible_conv1x1 import InvertibleConv1x1
from enigma.language_model.memory.ngram_memory import NGramMemory
from enigma.language_model.memory.pointer import Pointer
from pipelines.training.muon import Muon

BETAS = (0.9, 0.95)
ROTOR_LR_FRACTION = 0.1
"""Fraction of the learning rate that rotors use, always by AdamW. A rotor starts as the identity
and rotates the whole stream, so a step that is small for a residual layer is large for a rotor: at
the full rate a language model was worse than without rotors, at a tenth hardly. A driven rotor's
state says nothing at first; updates that Muon has made orthogonal let it into the stream all the
same (docs/LOG.md)."""
GATE_LR = 2e-3
"""Learning rate of the n-gram memory's gate and of the pointer, by AdamW and without decay. A gate
is a few numbers that read the whole state: at Muon's rate it went to one side within 40 steps
(docs/LOG.md)."""


class MuonWithAdamW(Optimizer):
    """Muon for some matrices and AdamW for the rest, behind one interface.

    Schedulers and checkpoints see one optimiser: it holds the groups and the state of
    both, and `state_dict` restores both.

    Args:
        matrices: 2-D parameters for Muon.
        groups: Groups of parameters for AdamW.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay)
        self._adamw = AdamW(groups, lr=lr, betas=BETAS, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step with both.

        Args:
            closure: Recomputes the loss, as for any optimiser.

        Returns:
            What `closure` returned; None without one.
        """
        # Loading a checkpoint replaces the groups and the state.
        self._muon.param_groups, self._adamw.param_groups = (
            self.param_groups[:1],
            self.param_groups[1:],
        )
        self._muon.state = self._adamw.state = self.state
        loss = self._muon.step(closure)
        self._adamw.step()
        return loss


def make_optimiser(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    linear: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> Optimizer:
    """Make the optimiser of a recipe.

    Args:
        name: `adamw` for all parameters, or `muon` for the weights of the linear layers except
            the head, with AdamW for the rest.
        model: A model with `get_input_embeddings` and `get_output_embeddings`.
        lr: Learning rate; rotors use `ROTOR_LR_FRACTION` of it, memories `GATE_LR`.
        weight_decay: Decoupled weight decay of matrices; gains, biases and signs have none.
        linear: Classes of linear layers, each with a 2-D `weight`.

    Returns:
        The optimiser; its first group has the learning rate `lr`.
    """
    rotors = _parameters_of(model, InvertibleConv1x1, LiftingConv1x1, DrivenRotor)
    gates = _parameters_of(model, NGramMemory, Pointer)
    own_rate = {id(parameter) for parameter in (*rotors, *gates)}
    matrices = _matrices(model, linear, own_rate) if name == "muon" else []
    chosen = own_rate | {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        {"params": rotors, "weight_decay": weight_decay, "lr": lr * ROTOR_LR_FRACTION},
        {"params": gates, "weight_decay": 0.0, "lr": GATE_LR},
    ]
    if matrices:
        return MuonWithAdamW(matrices, groups, lr=lr, weight_decay=weight_decay)
    return AdamW(groups, lr=lr, betas=BETAS, fused=True)


def _parameters_of(model: nn.Module, *kinds: type[nn.Module]) -> list[nn.Parameter]:
    """The parameters of all modules of some classes."""
    modules = (module for module in model.modules() if isinstance(module, kinds))
    return [parameter for module in modules for parameter in module.parameters()]


def _matrices(
    model: Any, linear: tuple[type[nn.Module], ...], own_rate: set[int]
) -> list[nn.Parameter]:
    """The weights of the linear layers, except the head, what it is tied to, and `own_rate`."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = own_rate | {id(parameter) for end in ends for parameter in end.parameters()}
    found = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, linear) and id(module.weight) not in apart
    }
    return [parameter for parameter in model.parameters() if id(parameter) in found]
