"""A flow as the prior of a variational autoencoder, against normal distributions.

    python examples/vae_prior.py

An autoencoder of digits (8 by 8 pixels, from scikit-learn) is trained with little weight on the
standard normal prior, so that images keep their details. Where the encoder puts images is then far
from normal, and a prior is fitted to it afterwards, as in latent diffusion. The bound on the
log-likelihood of held-out images is as good as that prior.
"""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, Normal

from enigma import EnigmaFlow

LATENT = 8
PRIOR_WEIGHT = 0.1
TEST_IMAGES = 297
STANDARD_NORMAL = Independent(Normal(torch.zeros(LATENT), torch.ones(LATENT)), 1)


def network(width_in: int, width_out: int) -> nn.Sequential:
    """Return a small multi-layer perceptron."""
    return nn.Sequential(
        nn.Linear(width_in, 128),
        nn.SiLU(),
        nn.Linear(128, 128),
        nn.SiLU(),
        nn.Linear(128, width_out),
    )


class Autoencoder(nn.Module):
    """A variational autoencoder of 64 binary pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = network(64, 2 * LATENT)
        self.decoder = network(LATENT, 64)

    def posterior(self, pixels: Tensor) -> Distribution:
        """Return the distribution of the latent vectors of images `(N, 64)`."""
        mean, log_scale = self.encoder(pixels).chunk(2, dim=-1)
        return Independent(Normal(mean, log_scale.clamp(-5, 3).exp()), 1)

    def bound(self, pixels: Tensor, prior: Distribution, prior_weight: float = 1.0) -> Tensor:
        """Return the bound on the log-likelihood of images in nats, `(N,)`."""
        posterior = self.posterior(pixels)
        latent = posterior.rsample()
        reconstruction = Bernoulli(logits=self.decoder(latent)).log_prob(pixels).sum(-1)
        divergence = posterior.log_prob(latent) - prior.log_prob(latent)
        return reconstruction - prior_weight * divergence


def maximise(
    module: nn.Module, objective: Callable[[Tensor], Tensor], images: Tensor, steps: int
) -> None:
    """Train a module on batches of images; grey is drawn anew as black or white each time."""
    optimiser = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.bernoulli(images[torch.randint(len(images), (128,))])
        loss = -objective(batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def main(steps: int = 400) -> dict[str, float]:
    """Train; return the bound on held-out images for each prior, in nats per image."""
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().data).float() / 16
    images = images[torch.randperm(len(images))]
    train, test = images[:-TEST_IMAGES], torch.bernoulli(images[-TEST_IMAGES:].repeat(20, 1))
    model = Autoencoder()
    maximise(model, lambda x: model.bound(x, STANDARD_NORMAL, PRIOR_WEIGHT), train, steps)
    with torch.no_grad():
        latent = model.posterior(torch.bernoulli(train.repeat(10, 1))).sample()
    normal = MultivariateNormal(latent.mean(0), latent.T.cov())
    flow = EnigmaFlow.build(
        LATENT, num_rev_blocks=2, coupling="affine", hidden_channels=64, axes_matter=False
    )
    flow.standardise(latent)
    maximise(flow, lambda x: flow.log_prob(model.posterior(x).sample()), train, steps)
    bounds = {}
    priors = {"standard normal": STANDARD_NORMAL, "normal, fitted": normal, "flow": flow()}
    for name, prior in priors.items():
        with torch.no_grad():
            bounds[name] = model.bound(test, prior).mean().item()
        print(f"prior {name}: {bounds[name]:.2f} nats per image")
    pixels = model.decoder(flow.sample(num_samples=1)).view(8, 8).sigmoid()
    print("an image drawn from the flow:")
    print("\n".join("".join(" .:+#@"[int(5.99 * p)] for p in row) for row in pixels.tolist()))
    return bounds


if __name__ == "__main__":
    main()
