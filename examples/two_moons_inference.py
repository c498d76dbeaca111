"""Infer the parameters of a simulator: a conditional flow learns p(theta | x) from simulations.

    python examples/two_moons_inference.py

The simulator is "two moons" (Greenberg et al., "Automatic Posterior Transformation for
Likelihood-Free Inference", 2019, appendix A.5): what it observes leaves two crescents of parameters
possible. One network is trained for all observations (amortised inference). At x = (0, 0) the true
posterior is known in closed form, so the result can be compared with it.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from enigma import EnigmaFlow

RADIUS = Normal(0.1, 0.01)
OBSERVED = torch.zeros(2)


def crescent(count: int) -> tuple[Tensor, Tensor]:
    """Return noise of the simulator `(count, 2)` and its log-density `(count,)` in nats."""
    angle = math.pi * (torch.rand(count) - 0.5)
    radius = RADIUS.sample((count,))
    noise = torch.stack((radius * angle.cos() + 0.25, radius * angle.sin()), dim=1)
    return noise, RADIUS.log_prob(radius) - (math.pi * radius).log()


def simulate(theta: Tensor) -> Tensor:
    """Return an observation `(N, 2)` for each of the parameters `(N, 2)`."""
    noise, _ = crescent(len(theta))
    total, difference = theta.sum(1), theta[:, 1] - theta[:, 0]
    return noise + torch.stack((-total.abs(), difference), dim=1) / math.sqrt(2)


def true_posterior(count: int) -> tuple[Tensor, Tensor]:
    """Draw `(count, 2)` parameters given x = (0, 0), with their log-density in nats.

    The simulator turns the square of the parameters by 45 degrees and folds it once. So every noise
    is explained by two parameters, which are equally likely.
    """
    noise, log_prob = crescent(count)
    total = math.sqrt(2) * noise[:, 0] * (2 * torch.randint(2, (count,)) - 1)
    difference = -math.sqrt(2) * noise[:, 1]
    theta = torch.stack((total - difference, total + difference), dim=1) / 2
    return theta, log_prob - math.log(2)


def divergence_nats(flow: EnigmaFlow, count: int = 5000) -> float:
    """Return KL(true posterior, flow) at the observation."""
    theta, log_prob = true_posterior(count)
    with torch.no_grad():
        return (log_prob - flow(OBSERVED).log_prob(theta)).mean().item()


def main(steps: int = 600) -> tuple[float, float]:
    """Train; return the divergence from the true posterior before and after, in nats."""
    torch.manual_seed(0)
    flow = EnigmaFlow.build(d=2, num_rev_blocks=1, hidden_channels=64, context_features=2)
    theta = 2 * torch.rand(20_000, 2) - 1
    flow.standardise(theta, simulate(theta))
    before = divergence_nats(flow)
    optimiser = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
    for step in range(steps):
        theta = 2 * torch.rand(512, 2) - 1
        loss = -flow(simulate(theta)).log_prob(theta).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step:4d}: {loss.item():.3f} nats")
    after = divergence_nats(flow)
    print(f"KL(true posterior, flow) at x = (0, 0): {before:.2f} nats before, {after:.2f} after")
    samples = flow(OBSERVED).sample((1000,))
    print(f"share of samples in the upper crescent: {(samples.sum(1) > 0).float().mean():.2f}")
    return before, after


if __name__ == "__main__":
    main()
