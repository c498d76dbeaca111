"""Which parameters Muon takes; the groups of a whole EnigmaLM: see test_recipe.py."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.language_model.memory.ngram_memory import NGramMemory
from pipelines.training.optimisers import GATE_LR, MuonWithAdamW, make_optimiser


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


class Model(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.inside = nn.Linear(4, 4)
        self.packed = Packed()
        self.head = nn.Linear(4, 9, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def taken_by_muon(model: nn.Module, linear: tuple[type[nn.Module], ...]) -> list[str]:
    found = make_optimiser("muon", model, lr=0.1, weight_decay=0.2, linear=linear)
    if isinstance(found, AdamW):
        return []
    mine = {id(parameter) for parameter in found.param_groups[0]["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in mine]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("linear", "names"),
    [
        ((nn.Linear,), ["inside.weight"]),
        ((nn.Linear, Packed), ["inside.weight", "packed.weight"]),
        ((nn.Conv1d,), []),
    ],
)
def test_muon_takes_linear_layers_but_never_the_ends(
    tied: bool, linear: tuple[type[nn.Module], ...], names: list[str]
) -> None:
    assert taken_by_muon(Model(tied=tied), linear) == names


def test_what_is_tied_is_updated_once() -> None:
    groups = make_optimiser("muon", Model(tied=True), lr=0.1, weight_decay=0.2).param_groups
    everything = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(everything) == len(set(everything)) == 4


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_gate_of_a_memory_has_a_rate_of_its_own_and_its_table_none(name: str) -> None:
    model = Model(tied=True)
    model.memory = NGramMemory.of(count_ngrams(torch.arange(9).view(3, 3), 9, order=2), d=4)
    groups = make_optimiser(name, model, lr=0.1, weight_decay=0.2).param_groups
    gate = {id(parameter) for parameter in model.memory.parameters()}
    theirs = [group for group in groups if gate & {id(p) for p in group["params"]}]
    assert [(group["lr"], group["weight_decay"]) for group in theirs] == [(GATE_LR, 0.0)]
    assert {id(parameter) for parameter in theirs[0]["params"]} == gate
    updated = sum(len(group["params"]) for group in groups)
    assert updated == len(list(model.parameters())), "and no buffer"


def test_a_closure_is_called_once_for_both() -> None:
    model = Model(tied=True)
    optimiser = make_optimiser("muon", model, lr=0.1, weight_decay=0.0)
    assert isinstance(optimiser, MuonWithAdamW)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    calls = []

    def loss() -> float:
        calls.append(1)
        optimiser.zero_grad()
        hidden = model.packed.weight @ model.inside(model.tokens.weight).T
        value = model.head(hidden.T).square().sum()
        value.backward()
        return value.item()

    assert optimiser.step(loss) > 0
    assert len(calls) == 1
    for old, new in zip(before, model.parameters(), strict=True):
        assert not torch.equal(old, new.detach())
