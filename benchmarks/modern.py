"""`modern`: a small GPT with the parts that public speed runs of GPT-2 agree on.

Written from the descriptions of nanochat (karpathy/nanochat) and modded-nanogpt
(KellerJordan/modded-nanogpt): rotary positions (Su et al., 2021), queries and keys normalised
(Henry et al., 2020), squared ReLU (So et al., 2021), RMS-norms without gain, no biases, projections
back to the stream that start at zero, and the embedding added to the stream before every layer
with learned weights. Two more parts are options: a second embedding that is added to the values
(Zhou et al., 2024) and logits bounded by a tanh (Gemma Team, 2024). docs/LOG.md says what each part
was worth at the sizes of the benchmarks. It uses the kernels of `enigma.layers`, so that a
difference in speed is one between the architectures.

Legend: B texts, L tokens, D channels, H heads, K channels per head, V ids.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from benchmarks.head_loss import head_loss
from enigma.layers.linear import Embedding, Linear
from enigma.layers.norm import rms_normalise
from enigma.layers.squared_relu import squared_relu

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class ModernConfig:
    """Sizes and parts of `ModernGPT`.

    Args:
        vocab_size: number of ids, V.
        width: channels, D.
        heads: attention heads, H; K = D / H must be even.
        layers: attention layers.
        tied: share the head with the embedding.
        skip: add the embedding to the stream before every layer, with learned weights.
        value_embeddings: add a second embedding to the values of this many last layers.
        soft_cap: bound the logits to this absolute value; None for no bound.
    """

    vocab_size: int
    width: int
    heads: int
    layers: int
    tied: bool = True
    skip: bool = True
    value_embeddings: int = 0
    soft_cap: float | None = None


class Head(nn.Linear):
    """The output head, with logits bounded by cap * tanh(logits / cap) if there is a cap."""

    def __init__(self, width: int, vocab_size: int, soft_cap: float) -> None:
        super().__init__(width, vocab_size, bias=False)
        self.soft_cap = soft_cap

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(..., V)` of states `(..., D)`."""
        logits: Tensor = super().forward(x)
        return self.soft_cap * torch.tanh(logits / self.soft_cap)


class Layer(nn.Module):
    """Attention and a network of width 4 D, each added to the stream."""

    def __init__(self, config: ModernConfig, *, has_value_embedding: bool) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, width, zero=True)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width, zero=True)
        self.skip = nn.Parameter(torch.tensor([1.0, 0.0])) if config.skip else None
        self.mix = nn.Parameter(torch.tensor([0.5, 0.5])) if has_value_embedding else None

    def forward(
        self, x_BLD: Tensor, start_BLD: Tensor, rotary: tuple[Tensor, Tensor], v_BLD: Tensor | None
    ) -> Tensor:
        """Return the stream after the layer.

        Args:
            x_BLD: the stream.
            start_BLD: the stream before the first layer.
            rotary: cosines and sines, `(L, K)` each.
            v_BLD: the value embeddings; None in a layer without them.
        """
        if self.skip is not None:
            x_BLD = self.skip[0] * x_BLD + self.skip[1] * start_BLD
        x_BLD = x_BLD + self._attend(rms_normalise(x_BLD), rotary, v_BLD)
        hidden = squared_relu(self.up(rms_normalise(x_BLD)))
        changed: Tensor = x_BLD + self.down(hidden)
        return changed

    def _attend(self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], v_BLD: Tensor | None) -> Tensor:
        q_BHLK = rotate(rms_normalise(self._heads(self.query(x_BLD))), *rotary)
        k_BHLK = rotate(rms_normalise(self._heads(self.key(x_BLD))), *rotary)
        value_BLD = self.value(x_BLD)
        if self.mix is not None and v_BLD is not None:
            value_BLD = self.mix[0] * value_BLD + self.mix[1] * v_BLD
        y_BHLK = functional.scaled_dot_product_attention(
            q_BHLK, k_BHLK, self._heads(value_BLD), is_causal=True
        )
        attended: Tensor = self.out(y_BHLK.transpose(1, 2).flatten(2))
        return attended

    def _heads(self, x_BLD: Tensor) -> Tensor:
        channels = x_BLD.shape[-1] // self.heads
        return x_BLD.view(*x_BLD.shape[:-1], self.heads, channels).transpose(1, 2)


class ModernGPT(nn.Module):
    """The model; called and trained like a causal language model of transformers.

    Args:
        config: sizes and parts.
    """

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.settings = config
        self.tokens = Embedding(config.vocab_size, config.width)
        first = config.layers - config.value_embeddings
        self.values = nn.ModuleList(
            Embedding(config.vocab_size, config.width) for _ in range(config.value_embeddings)
        )
        self.layers = nn.ModuleList(
            Layer(config, has_value_embedding=number >= first) for number in range(config.layers)
        )
        self.head: nn.Linear = Linear(config.width, config.vocab_size, zero=not config.tied)
        if config.soft_cap is not None:
            self.head = Head(config.width, config.vocab_size, config.soft_cap)
        if config.tied:
            self.head.weight = self.tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutput:
        """Return the loss if there are labels, else the logits.

        Args:
            input_ids: int64 `(B, L)`.
            labels: int64 `(B, L)`, shifted here.
            num_items_in_batch: targets of an accumulated batch.
        """
        hidden_BLD = self.hidden_states(input_ids)
        if labels is None:
            return CausalLMOutput(logits=self.head(hidden_BLD))
        loss = head_loss(hidden_BLD, self.head, labels, num_items_in_batch)
        return CausalLMOutput(loss=loss)

    def hidden_states(self, ids_BL: Tensor) -> Tensor:
        """Return what the head reads, `(B, L, D)`."""
        start_BLD = x_BLD = rms_normalise(self.tokens(ids_BL))
        rotary = rotary_tables(ids_BL.shape[1], self.settings.width // self.settings.heads)
        values = [None] * (len(self.layers) - len(self.values)) + [
            rms_normalise(embedding(ids_BL)) for embedding in self.values
        ]
        for layer, v_BLD in zip(self.layers, values, strict=True):
            x_BLD = layer(x_BLD, start_BLD, rotary, v_BLD)
        return rms_normalise(x_BLD)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.head


def rotary_tables(length: int, channels: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of rotary positions, `(L, K)` each; K = `channels`."""
    frequency = ROTARY_BASE ** (-torch.arange(0, channels, 2) / channels)
    angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x_BHLK: Tensor, cos_LK: Tensor, sin_LK: Tensor) -> Tensor:
    """Turn each pair of channels (i, i + K / 2) by its position's angle."""
    first, second = x_BHLK.chunk(2, dim=-1)
    return x_BHLK * cos_LK + torch.cat((-second, first), dim=-1) * sin_LK
