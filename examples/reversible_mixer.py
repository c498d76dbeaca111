"""A deep MLP-mixer that is trained without stored activations.

    python examples/reversible_mixer.py

Any pairs of networks can be trained this way: `ReversibleSequence` runs y1 = x1 + f(x2),
y2 = x2 + g(y1) for each pair (f, g) and computes the inputs again from the outputs. Here f mixes
the patches of an image and g the channels of a patch (Tolstikhin et al., "MLP-Mixer", 2021). The
digits are those of scikit-learn, 8 by 8 pixels.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from enigma.reversible import MemoryMode, ReversibleSequence

PATCHES, PATCH_PIXELS, CHANNELS = 16, 4, 32
TEST_IMAGES = 297


class MixPatches(nn.Module):
    """A perceptron over the patches, the same for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.mix = nn.Sequential(nn.Linear(PATCHES, 32), nn.GELU(), nn.Linear(32, PATCHES))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, patches, channels)` to the same shape."""
        return self.mix(self.norm(x).mT).mT


def mix_channels() -> nn.Sequential:
    """Return a perceptron over the channels of each patch."""
    return nn.Sequential(
        nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 64), nn.GELU(), nn.Linear(64, CHANNELS)
    )


class Mixer(nn.Module):
    """An MLP-mixer over two streams.

    Args:
        depth: pairs of networks.
        memory: what training stores, see `enigma.reversible`.
    """

    def __init__(self, depth: int, memory: MemoryMode = "reversible") -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH_PIXELS, CHANNELS)
        pairs = [(MixPatches(), mix_channels()) for _ in range(depth)]
        self.body = ReversibleSequence(pairs, memory=memory)
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, 10)` of images `(N, 8, 8)`."""
        patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(-1, PATCHES, PATCH_PIXELS)
        embedded = self.embed(patches)
        y1, y2 = self.body(embedded, embedded)
        return self.head((y1 + y2).mean(dim=1))


def stored_mib(depth: int, memory: MemoryMode) -> float:
    """Return how much a forward pass over 64 images keeps for the backward pass."""
    model = Mixer(depth, memory)
    parameters, sizes = {p.data_ptr() for p in model.parameters()}, {}

    def count(x: Tensor) -> Tensor:
        if x.data_ptr() not in parameters:
            sizes[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        model(torch.randn(64, 8, 8))
    return sum(sizes.values()) / 2**20


def main(steps: int = 150, depth: int = 12) -> float:
    """Compare the memory, train, and return the accuracy on held-out images."""
    torch.manual_seed(0)
    for memory in ("plain", "reversible"):
        kept = ", ".join(f"{stored_mib(n, memory):.1f} MiB at depth {n}" for n in (4, 16, 64))
        print(f"{memory}: {kept}")
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.from_numpy(digits.images).float()[order] / 8 - 1
    labels = torch.from_numpy(digits.target)[order]
    model = Mixer(depth)
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images) - TEST_IMAGES, (128,))
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        guesses = model(images[-TEST_IMAGES:]).argmax(-1)
    accuracy = (guesses == labels[-TEST_IMAGES:]).float().mean().item()
    print(f"accuracy on {TEST_IMAGES} held-out images, depth {depth}: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
