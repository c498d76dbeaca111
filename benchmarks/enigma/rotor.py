"""The cost of a stepping rotor against a plain linear layer of the same width.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.rotor          # under a minute

512 channels, 4,096 tokens (16 texts of 256), float32, stacks of 4 layers.
"""

import torch
from torch import nn

from benchmarks.record import median_times_s, row, write
from enigma.bijections.constant_weights import constant_weights
from enigma.invertible_conv1x1 import DynamicInvertibleConv1x1Stack

WIDTH, TEXTS, LENGTH, LAYERS, POSITIONS = 512, 16, 256, 4, 16
REPEATS = 25
TARGET_TRAINING, TARGET_EVALUATION = 1.5, 1.1


def naive(stack: DynamicInvertibleConv1x1Stack, x_BLD: torch.Tensor) -> torch.Tensor:
    """Return the output of the stack by its definition, S^-p W S^p, token by token."""
    texts = []
    for x_LD in x_BLD:
        rows = []
        for t, vector in enumerate(x_LD):
            y = vector
            for k, rotor in enumerate(stack.rotors()):
                turn = (t // POSITIONS**k) % POSITIONS * (WIDTH // POSITIONS)
                y = rotor(y.roll(-turn)).roll(turn)
            rows.append(y)
        texts.append(torch.stack(rows))
    return torch.stack(texts)


def main() -> None:
    """Check against the definition, measure, print and write."""
    torch.manual_seed(0)
    linear = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    stacks = {
        form: DynamicInvertibleConv1x1Stack(WIDTH, LAYERS, POSITIONS, form=form)
        for form in ("plu", "lifting")
    }
    x_BLD = torch.randn(TEXTS, LENGTH, WIDTH, requires_grad=True)
    grad_BLD = torch.randn(TEXTS, LENGTH, WIDTH)
    for stack in stacks.values():
        with torch.no_grad():
            for parameter in stack.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
            few = x_BLD[:1, :40]
            torch.testing.assert_close(stack(few), naive(stack, few), rtol=0, atol=1e-4)
    layers = [linear, *stacks.values()]
    training = median_times_s(
        [lambda layer=layer: layer(x_BLD).backward(grad_BLD) for layer in layers], REPEATS
    )
    for layer in layers:
        layer.eval()
    with torch.inference_mode(), constant_weights():
        evaluation = median_times_s([lambda layer=layer: layer(x_BLD) for layer in layers], REPEATS)
    rows = []
    for what, times, target in (
        ("forward and backward", training, TARGET_TRAINING),
        ("evaluation", evaluation, TARGET_EVALUATION),
    ):
        for form, time_s in zip(stacks, times[1:], strict=True):
            # The lifting form has no W to cache.
            aimed = form == "plu" or times is training
            rows.append(
                row(
                    f"rotor, {form}, {what}",
                    1000 * time_s / LAYERS,
                    "ms",
                    peer="nn.Linear",
                    peer_value=1000 * times[0] / LAYERS,
                    target=f"<= {target}x" if aimed else None,
                    met=time_s / times[0] <= target if aimed else None,
                )
            )
    write("rotor", rows)


if __name__ == "__main__":
    main()
