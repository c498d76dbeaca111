"""Causal attention with linear biases, without a bias matrix.

ALiBi (Press et al., "Train Short, Test Long", 2022) adds -m_h (i - j) to the score of query i
and key j in head h. Softmax ignores a term that is the same for all keys of a query, so m_h j is
enough, and that is an inner product: two channels of every head hold the key's position, and
the same two channels of the query hold the slope. So no (L, L) bias exists, the fused causal
kernels apply unchanged, and keys can be cached with their position inside.

Legend: B batch, L queries, S keys, D channels, H heads, K channels per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import KeyValueCache, Run
from enigma.layers.dropped_attention import dropped_attention
from enigma.layers.linear import Linear
from enigma.layers.norm import rms_normalise
from enigma.layers.squared_relu import squared_relu
from enigma.reversible import CouplingStep

__all__ = ["AttentionLayer", "CausalSelfAttention", "alibi_slopes", "position_channels"]

_POSITION_CHANNELS = 2
_COARSE = 256
"""Base of the two position digits: integers to 256 are exact even in bfloat16."""
_PADDING = -8192.0
"""Coarse digit of a padding key: exp underflows to exactly 0 in every dtype, float64 included."""


def alibi_slopes(num_heads: int) -> Tensor:
    """Return the slope m_h of every head, `(H,)` float64: 2^(-8 h / H) for h = 1 ... H.

    Examples:
        >>> alibi_slopes(2).tolist()
        [0.0625, 0.00390625]
    """
    return torch.tensor(
        [2.0 ** (-8.0 * h / num_heads) for h in range(1, num_heads + 1)],
        dtype=torch.float64,
        device="cpu",
    )


def position_channels(index: Tensor, mask_BL1: Tensor | None, *, use_alibi: bool) -> Tensor:
    """Return what keys hold in their position channels.

    Args:
        index: int64 `(L,)` or `(B, L)` token indices.
        mask_BL1: `(B, L, 1)`, 0 at padding, or None.
        use_alibi: False gives every token position 0 and marks only padding.

    Returns:
        float32 `(1 or B, 1, L, 2)`: the coarse and the fine digit of the index in base 256.
    """
    position = index if use_alibi else torch.zeros_like(index)
    coarse = position.div(_COARSE, rounding_mode="floor").float()
    digits = torch.stack((coarse, position.remainder(_COARSE).float()), dim=-1)
    if digits.ndim == 2:
        digits = digits.unsqueeze(0)
    if mask_BL1 is not None:
        padding = torch.tensor([_PADDING, 0.0], device=digits.device)
        digits = torch.where(mask_BL1 > 0, digits, padding)
    return digits.unsqueeze(1)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which no token sees a later one.

    Queries and keys are RMS-normalised (QK-norm; Henry et al., 2020).

    Args:
        d: width D, divisible by `num_heads`, with at least 4 channels per head.
        num_heads: heads, H.
        use_alibi: linear biases; without them a position embedding must give the order of tokens.
        attention_dropout: probability of dropping an attention weight in training.

    Raises:
        ValueError: if the heads do not divide the width, or leave fewer than 4 channels each.
    """

    def __init__(
        self, d: int, num_heads: int, *, use_alibi: bool = True, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or d % num_heads or d // num_heads < 2 * _POSITION_CHANNELS:
            raise ValueError(
                f"num_heads must divide d={d} and leave at least {2 * _POSITION_CHANNELS} "
                f"channels per head, got {num_heads}"
            )
        self.num_heads = num_heads
        self.head_channels = d // num_heads
        self.use_alibi = use_alibi
        self.attention_dropout = attention_dropout
        content = self.head_channels - _POSITION_CHANNELS
        self.query = Linear(d, num_heads * content)
        self.key = Linear(d, num_heads * content)
        self.value = Linear(d, d)
        self.out = Linear(d, d, zero=True)

    def forward(
        self,
        x_BLD: Tensor,
        key_positions: Tensor,
        cache: KeyValueCache | None = None,
        layer_index: int = 0,
    ) -> Tensor:
        """Attend.

        Args:
            x_BLD: floating `(B, L, D)`.
            key_positions: from `position_channels`, for these L tokens.
            cache: keys and values of earlier tokens; these L are appended.
            layer_index: this layer's slot in the cache.

        Returns:
            `(B, L, D)`.
        """
        q_BHLK = rms_normalise(self._heads(self.query(x_BLD)))
        q_BHLK = _append(q_BHLK, self._query_slopes(x_BLD.device))
        k_BHSK = _append(rms_normalise(self._heads(self.key(x_BLD))), key_positions)
        v_BHSK = self._heads(self.value(x_BLD))
        if cache is not None:
            k_BHSK, v_BHSK = cache.update(k_BHSK, v_BHSK, layer_index)
        y_BHLK = self.attend(q_BHLK, k_BHSK, v_BHSK)
        y_BLD: Tensor = self.out(y_BHLK.transpose(1, 2).flatten(2))
        return y_BLD

    def attend(self, q_BHLK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
        """Return the causal attention of the last L of S tokens, `(B, H, L, K)`."""
        length, num_keys = q_BHLK.shape[-2], k_BHSK.shape[-2]
        dropout = self.attention_dropout if self.training else 0.0
        if dropout and length == num_keys and q_BHLK.device.type == "cpu":
            return dropped_attention(q_BHLK, k_BHSK, v_BHSK, dropout)
        mask = None
        if 1 < length < num_keys:
            # Several new tokens after cached ones: the fused causal mask would align at the top.
            mask = torch.ones(length, num_keys, dtype=torch.bool, device=q_BHLK.device)
            mask = mask.tril(num_keys - length)
        return functional.scaled_dot_product_attention(
            q_BHLK,
            k_BHSK,
            v_BHSK,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=length == num_keys > 1,
        )

    def _heads(self, x: Tensor) -> Tensor:
        channels = x.shape[-1] // self.num_heads
        return x.view(*x.shape[:-1], self.num_heads, channels).transpose(1, 2)

    def _query_slopes(self, device: torch.device) -> Tensor:
        """Return what queries hold in their position channels, `(1, H, 1, 2)` float64."""
        # Undo the 1 / sqrt(K) of the attention kernel.
        slope_H = alibi_slopes(self.num_heads) * math.sqrt(self.head_channels)
        return torch.stack((_COARSE * slope_H, slope_H), dim=-1).view(1, -1, 1, 2).to(device)


def _append(content: Tensor, position: Tensor) -> Tensor:
    """Append the position channels to the content of each head."""
    shape = (*content.shape[:-1], _POSITION_CHANNELS)
    return torch.cat((content, position.to(content.dtype).expand(shape)), dim=-1)


class AttentionLayer(nn.Module):
    """A reversible pre-norm transformer layer over two streams of width D.

    y1 = x1 + attention(norm(x2)), y2 = x2 + network(norm(y1)), with a squared-ReLU network of
    width 4 D: as many parameters and products as a plain layer, but it can be undone.

    Sources: Vaswani et al. (2017); two streams, Kitaev et al., "Reformer" (2020), equation 9;
    squared ReLU, So et al., "Primer" (2021).

    Args:
        d: width D.
        num_heads: heads, H.
        use_alibi: linear biases in the attention.
        attention_dropout: probability of dropping an attention weight in training.
        hidden_dropout: probability of dropping a channel of each branch in training.
        exact: add on the grid of exact mode, where both streams must lie; the layer can then
            be undone bit for bit.
    """

    def __init__(
        self,
        d: int,
        num_heads: int,
        *,
        use_alibi: bool = True,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.exact = exact
        self.attention = CausalSelfAttention(
            d, num_heads, use_alibi=use_alibi, attention_dropout=attention_dropout
        )
        self.mlp_up = Linear(d, 4 * d)
        self.mlp_down = Linear(4 * d, d, zero=True)
        self.hidden_dropout = hidden_dropout

    def forward(self, x1_BLD: Tensor, x2_BLD: Tensor, run: Run) -> tuple[Tensor, ...]:
        """Return both streams after the layer, as `run` of its step computes them.

        The layer is a module call only so that its hooks fire and its weights are at hand.
        """
        return run(x1_BLD, x2_BLD)

    def step(
        self, key_positions: Tensor, cache: KeyValueCache | None = None, layer_index: int = 0
    ) -> CouplingStep:
        """Return the layer as a step over two streams `(B, L, D)`.

        Args:
            key_positions: from `position_channels`, for the L tokens of the streams.
            cache: keys and values of earlier tokens; these L are appended.
            layer_index: this layer's slot in the cache.
        """

        def attend(x_BLD: Tensor) -> Tensor:
            attended: Tensor = self.attention(
                rms_normalise(x_BLD), key_positions, cache, layer_index
            )
            return self._drop(attended)

        return CouplingStep(
            (attend, (self.attention,)),
            (self._transform, (self.mlp_up, self.mlp_down)),
            stream_numbers=(0, 1),
            exact=self.exact,
            module=self,
        )

    def _transform(self, x_BLD: Tensor) -> Tensor:
        hidden = squared_relu(self.mlp_up(rms_normalise(x_BLD)))
        transformed: Tensor = self.mlp_down(hidden)
        return self._drop(transformed)

    def _drop(self, x_BLD: Tensor) -> Tensor:
        return functional.dropout(x_BLD, self.hidden_dropout, self.training)
