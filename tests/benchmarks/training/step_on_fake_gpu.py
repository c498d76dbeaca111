"""Steps on a made-up GPU, in a process of their own; prints what each one does to the host."""

import torch

from benchmarks.ngrams import with_ngrams
from benchmarks.training.fake_gpu import HostReadError, fake_gpu, onto_fake_gpu
from benchmarks.training.launches import step_counts
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from enigma.reflector import Reflector
from pipelines.training.optimisers import make_optimiser

SIZES = {
    "vocab_size": 60,
    "d": 32,
    "num_heads": 4,
    "num_rev_blocks": 1,
    "num_rotors": 2,
    "num_transformer_layers": 2,
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
}
PLANTED = {
    "item": lambda x: x * float(x.sum()),
    "bool": lambda x: x if bool((x > 0).all()) else -x,
    "nonzero": lambda x: x[(x[:, 0, 0] > 0).nonzero().flatten()],
    "host": lambda x: x + x.cpu().sum().to(x.device),
    "constant": lambda x: x * torch.tensor([1.0] * x.shape[-1]).to(x.device),
    "solve": lambda x: x @ torch.linalg.solve(torch.eye(32, device=x.device), x[0, :1].mT) * x,
}


def step(name, memory="reversible", planted=None, model=None, **changes) -> None:
    """Print the operations of a step, or what made the host wait."""
    if model is None:
        model = EnigmaForCausalLM(EnigmaConfig(**SIZES, **changes, memory=memory)).train()
    if planted is not None:
        network = model.lm.layers[0].attention
        forward = network.forward
        network.forward = lambda x, *rest: forward(planted(x), *rest)
    onto_fake_gpu(model)
    optimiser = make_optimiser("muon", model, lr=1e-3, weight_decay=0.01)
    try:
        counts = step_counts(model, optimiser, length=16)
    except Exception as error:  # noqa: BLE001 - of torch's fake tensors, of several classes
        read = isinstance(error, HostReadError) or "DataDependent" in type(error).__name__
        read = read or "DynamicOutputShape" in type(error).__name__
        print(name, "host read" if read else repr(error))
    else:
        print(name, *counts.values())


def main() -> None:
    """Take every step."""
    # Counted in memory that exists.
    counted = with_ngrams(EnigmaForCausalLM(EnigmaConfig(**SIZES, memory="reversible")), order=3)
    with fake_gpu():
        step("ngrams", model=counted.train())
        for memory in ("plain", "checkpoint", "reversible"):
            step(memory, memory)
        step("lifting", rotor_form="lifting")
        step("convolutions", kernel_size=3)
        assert Reflector(4).vectors.shape[0] == 1, (
            "of rank 1, as in the machine: no system is solved"
        )
        for name, function in PLANTED.items():
            step(f"planted-{name}", planted=function)


# Collecting doctests imports this file; the device must stay out of the tests' own process.
if __name__ == "__main__":
    main()
