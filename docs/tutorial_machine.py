"""A first walk through the library: a flow in two dimensions, and a sentence through the machine.

    python docs/tutorial_machine.py            # two minutes on one core; pictures in docs/images
    python docs/tutorial_machine.py --steps 20 --out /tmp/pictures

Editors that support `# %%` cells run them one by one.
"""

# %%
import argparse
import math
from pathlib import Path

import matplotlib as mpl
import torch

mpl.use("agg")
import matplotlib.pyplot as plt

from enigma import Enigma, EnigmaFlow

SENTENCE = "天下大势,分久必合,合久必分"
BITS = 16


# %% [markdown]
# ## A density in two dimensions
# The flow maps two moons to a standard normal. What it learns is a density: it can be evaluated
# everywhere, it integrates to 1, and sampling it costs as much as evaluating it.


# %%
def two_moons(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `(count, 2)` points from two half circles with noise."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    noise = 0.1 * torch.randn(count, 2, generator=generator)
    return torch.stack((x, y), dim=1) + noise


def train_flow(steps: int) -> tuple[EnigmaFlow, torch.Tensor]:
    """Fit a flow of splines to fresh points at every step; return it and test points."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    flow = EnigmaFlow.build(2, num_rev_blocks=2, hidden_channels=64)
    flow.standardise(two_moons(10_000, generator))
    optimiser = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        loss = -flow.log_prob(two_moons(512, generator)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step:4d}: {loss.item():.3f} nats")
    return flow, two_moons(10_000, generator)


def density_on_grid(flow: EnigmaFlow, step: float = 0.02) -> tuple[torch.Tensor, float]:
    """Return the density on [-2, 3] x [-1.5, 2] as `(y, x)` and its integral."""
    x, y = torch.arange(-2, 3, step), torch.arange(-1.5, 2, step)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(y, x).flip(-1)).exp()
    return density.view(len(y), len(x)), density.sum().item() * step**2


def draw_flow(flow: EnigmaFlow, test: torch.Tensor, path: Path) -> None:
    """Draw the data, the learned density and samples side by side."""
    density, mass = density_on_grid(flow)
    with torch.no_grad():
        nll = -flow.log_prob(test).mean().item()
    samples = flow.sample(3000, torch.Generator().manual_seed(1))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), sharex=True, sharey=True)
    axes[0].scatter(*test[:3000].T, s=2, color="#1f4e79")
    axes[0].set_title("data")
    axes[1].imshow(density, origin="lower", extent=(-2, 3, -1.5, 2), aspect="auto", cmap="magma")
    axes[1].set_title(f"density: integral {mass:.4f}, test {nll:.3f} nats")
    axes[2].scatter(*samples.T, s=2, color="#b5482a")
    axes[2].set_title("samples")
    axes[0].set_xlim(-2, 3)
    axes[0].set_ylim(-1.5, 2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"the density integrates to {mass:.4f}; test {nll:.3f} nats; see {path.name}")


# %% [markdown]
# ## A sentence through the machine and back
# Every character is the 16 bits of its code point, a vector of -1 and 1. The machine is exact and
# its return path undoes the way out, so like the historical machine it deciphers with the setting
# that enciphered: every number comes back with the same 32 bits.


# %%
def to_bits(sentence: str) -> torch.Tensor:
    """Return `(L, 16)` of -1 and 1: the code point of each character, highest bit first."""
    codes = torch.tensor([ord(character) for character in sentence])
    return ((codes[:, None] >> torch.arange(BITS - 1, -1, -1)) & 1).float() * 2 - 1


def from_bits(bits: torch.Tensor) -> str:
    """Return the characters whose bits are positive."""
    codes = ((bits > 0).long() << torch.arange(BITS - 1, -1, -1)).sum(-1)
    return "".join(chr(code) if chr(code).isprintable() else "·" for code in codes.tolist())


def machine_with_key(key: int) -> Enigma:
    """Return an exact, self-inverse machine whose weights come from `key`."""
    torch.manual_seed(key)
    machine = Enigma(
        BITS,
        num_rev_blocks=3,
        num_rotors=3,
        positions=4,
        rotor_form="lifting",
        return_path="inverse",
        exact=True,
        seed=key,
    )
    with torch.no_grad():
        for parameter in machine.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return machine.eval()


def draw_machine(path: Path) -> None:
    """Encipher, decipher, print, and draw the three streams and the bits that differ."""
    plain = to_bits(SENTENCE)
    machine, other = machine_with_key(1941), machine_with_key(1942)
    with torch.no_grad():
        cipher = machine(plain)
        again = machine(cipher)
        wrong = other(cipher)
    differing = (plain.view(torch.int32) ^ again.view(torch.int32)).ne(0)
    print(f"plain     {SENTENCE}\nenciphered, read as text: {from_bits(cipher)}")
    print(f"same key  {from_bits(again)}   ({int(differing.sum())} numbers differ in any bit)")
    print(f"other key {from_bits(wrong)}")
    panels = {
        "plain bits": plain,
        "enciphered": cipher,
        "deciphered with the same key": again,
        "with another key": wrong,
    }
    figure, axes = plt.subplots(1, 4, figsize=(13, 4.2), sharey=True)
    for axis, (title, stream) in zip(axes, panels.items(), strict=True):
        bound = stream.abs().max().item()
        image = axis.imshow(stream, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
        axis.set_title(title)
        axis.set_xlabel("channel")
        figure.colorbar(image, ax=axis, fraction=0.05)
    axes[0].set_yticks(range(len(SENTENCE)), [f"U+{ord(c):04X}" for c in SENTENCE])
    axes[2].set_xlabel(f"channel; {int(differing.sum())} of {differing.numel()} numbers differ")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


# %%
def main() -> None:
    """Train, draw, encipher, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    flow, test = train_flow(arguments.steps)
    draw_flow(flow, test, arguments.out / "tutorial_flow.png")
    draw_machine(arguments.out / "tutorial_machine.png")


if __name__ == "__main__":
    main()
