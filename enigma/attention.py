"""Causal attention with linear biases, without a bias matrix.

ALiBi (Press et al., "Train Short, Test Long", 2022) adds -m_h (i - j) to the score of query i
and key j in head h. Softmax ignores a term that is the same for all keys of a query, so m_h j is
enough, and that is an inner product: two channels of every head hold the key's position, and
the same two channels of the query hold the slope. So no (L, L) bias exists, the fused causal
kernels apply unchanged, and keys can be cached with their position inside.

Positions enter the scores relative to the last token of the call, so that a large index costs no
precision. A cache holds them from the start of the text: in bfloat16 they are exact up to 65,536.
A single new token adds the biases to its scores instead: that spares it a copy of all keys.

Legend: B batch, L queries, S keys, D channels, H heads, K channels per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import KeyValueCache
from enigma.bijections.step_groups import StepGroup
from enigma.layers.dropped_attention import dropped_attention
from enigma.layers.linear import Linear
from enigma.layers.mixing_layer import MixingLayer
from enigma.layers.norm import rms_normalise

__all__ = [
    "AttentionContext",
    "AttentionLayer",
    "CausalSelfAttention",
    "alibi_slopes",
    "fitting_heads",
]

_POSITION_CHANNELS = 2
_FEWEST_CHANNELS = 2 * _POSITION_CHANNELS
_MOST_HEADS = 8
_COARSE = 256
"""Base of the two position digits: integers to 256 are exact even in bfloat16."""
_PADDING = -8192
"""Coarse digit of a padding key: exp underflows to exactly 0 in every dtype, float64 included."""
_WIDE_BYTES = 4
"""A dtype as wide as float32 holds a bias; in a narrower one it would keep 3 digits."""


def alibi_slopes(
    num_heads: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the slope m_h of every head, `(H,)`: 2^(-8 h / H) for h = 1 ... H.

    Examples:
        >>> alibi_slopes(2).tolist()
        [0.0625, 0.00390625]
    """
    # Computed on the device: a copy to a GPU would wait for all that it still has to do.
    head_H = torch.arange(1, num_heads + 1, dtype=dtype, device=device)
    return torch.exp2(head_H * (-8.0 / num_heads))


class AttentionContext:
    """What the attention layers share in one forward pass, on whatever device a layer is.

    Args:
        index: int64 `(L,)` or `(B, L)` token indices.
        mask_BL1: `(B, L, 1)`, 0 at padding, or None.
        use_alibi: False gives every token position 0 and marks only padding.
        cache: keys and values of earlier tokens; these L are appended.
        visible: `(1 or B, 1 or H, L, S)`: bool, which keys a query sees, or floating, what is added
            to its scores. None lets it see all keys up to its own, which are the last L of S.
        weights: receives the attention weights of every layer; None computes none.

    Attributes:
        digits: coarse and fine digit of the position of the new keys in base 256, int64
            `(1 or B, 1, L, 2)`: relative to the last token or, for a cache, absolute.
    """

    def __init__(
        self,
        index: Tensor,
        mask_BL1: Tensor | None = None,
        *,
        use_alibi: bool = True,
        cache: KeyValueCache | None = None,
        visible: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> None:
        self.cache = cache
        self.visible = visible
        self.weights = weights
        index_BL = index if index.ndim == 2 else index.unsqueeze(0)
        if not use_alibi:
            index_BL = torch.zeros_like(index_BL)
        coarse_BL = index_BL.div(_COARSE, rounding_mode="floor")
        digits = torch.stack((coarse_BL, index_BL.remainder(_COARSE)), dim=-1).unsqueeze(1)
        self._reference = digits[:, :, -1:]
        if cache is None:
            digits = digits - self._reference
        if mask_BL1 is not None:
            real = mask_BL1.unsqueeze(1) > 0
            coarse = torch.where(real, digits[..., :1], _PADDING)
            digits = torch.cat((coarse, digits[..., 1:].expand_as(coarse)), dim=-1)
        self.digits = digits
        self._biases: dict[torch.device, Tensor] = {}
        self._positions: dict[
            tuple[int, int, torch.dtype, torch.device], tuple[Tensor, Tensor]
        ] = {}

    def positions(self, q_BHLC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the position channels of queries `(1, H, 1, 2)` and of new keys, in their dtype.

        They are formed once for all layers: on a GPU each operation costs a launch.

        Args:
            q_BHLC: queries, without the position channels.
        """
        key = (q_BHLC.shape[1], q_BHLC.shape[3], q_BHLC.dtype, q_BHLC.device)
        if key not in self._positions:
            num_heads, content, dtype, device = key
            wide = torch.promote_types(dtype, torch.float32)
            # Undo the 1 / sqrt(K) of the attention kernel.
            unscaled = math.sqrt(content + _POSITION_CHANNELS)
            slope_H = alibi_slopes(num_heads, wide, device) * unscaled
            slopes = torch.stack((_COARSE * slope_H, slope_H), dim=-1).view(1, -1, 1, 2)
            self._positions[key] = slopes.to(dtype), self.digits.to(device, dtype)
        return self._positions[key]

    def relative_digits(self, k_BHSK: Tensor) -> Tensor:
        """Return the positions of cached keys relative to the last token, `(1 or B, 1, S, 2)`."""
        digits = k_BHSK[:, :1, :, -_POSITION_CHANNELS:]
        wide = torch.promote_types(digits.dtype, torch.float32)
        return digits.to(wide) - self._reference.to(digits.device)

    def bias(self, k_BHSK: Tensor, num_heads: int) -> Tensor:
        """Return what a single query adds to its scores, `(1 or B, H, 1, S)`."""
        device = k_BHSK.device
        if device not in self._biases:  # the keys of every layer stand at the same positions
            digits = self.relative_digits(k_BHSK)
            distance = (_COARSE * digits[..., 0] + digits[..., 1]).unsqueeze(-2)
            slope_H = alibi_slopes(num_heads, k_BHSK.dtype, device)
            self._biases[device] = _hide(slope_H.view(-1, 1, 1) * distance, self.visible)
        return self._biases[device]

    def seen(self, length: int, num_keys: int, device: torch.device) -> Tensor | None:
        """Return `visible`; None where a causal kernel, or a single token, needs no mask."""
        if self.visible is None and self.cache is not None and 1 < length < num_keys:
            # Several new tokens after cached ones: the fused causal mask would align at the top.
            ones_LS = torch.ones(length, num_keys, dtype=torch.bool, device=device)
            self.visible = ones_LS.tril(num_keys - length)
        return None if self.visible is None else self.visible.to(device)


def fitting_heads(d: int, num_heads: int | None) -> int:
    """Return the attention heads, by default the largest number up to 8 that fits the width.

    Raises:
        ValueError: if heads that are given do not divide the width D or leave fewer than 4
            channels each; or for a width below 4.

    Examples:
        >>> fitting_heads(512, None), fitting_heads(12, None)
        (8, 3)
    """
    fitting = [heads for heads in range(1, d // _FEWEST_CHANNELS + 1) if d % heads == 0]
    if not fitting:
        raise ValueError(f"d must be at least {_FEWEST_CHANNELS}, got {d}")
    default = max(heads for heads in fitting if heads <= _MOST_HEADS)
    if num_heads is None:
        return default
    if num_heads not in fitting:
        raise ValueError(
            f"num_heads must divide d={d} and leave at least {_FEWEST_CHANNELS} channels per head, "
            f"got {num_heads}; to fix this: take {default}, or another of {fitting}"
        )
    return num_heads


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
        self.num_heads = fitting_heads(d, num_heads)
        self.head_channels = d // num_heads
        self.use_alibi = use_alibi
        self.attention_dropout = attention_dropout
        content = self.head_channels - _POSITION_CHANNELS
        self.query = Linear(d, num_heads * content)
        self.key = Linear(d, num_heads * content)
        self.value = Linear(d, d)
        self.out = Linear(d, d, zero=True)

    def forward(self, x_BLD: Tensor, context: AttentionContext, layer_index: int = 0) -> Tensor:
        """Attend.

        Args:
            x_BLD: floating `(B, L, D)`.
            context: of these L tokens.
            layer_index: this layer's slot in the cache.

        Returns:
            `(B, L, D)`.
        """
        q_BHLC = rms_normalise(self._heads(self.query(x_BLD)))
        k_BHLC = rms_normalise(self._heads(self.key(x_BLD)))
        v_BHSK = self._heads(self.value(x_BLD))
        k_BHSK = _append(k_BHLC, context.positions(q_BHLC)[1])
        if context.cache is not None:
            k_BHSK, v_BHSK = context.cache.update(k_BHSK, v_BHSK, layer_index)
        y_BHLK = self.attend(q_BHLC, k_BHSK, v_BHSK, context)
        y_BLD: Tensor = self.out(y_BHLK.transpose(1, 2).flatten(2))
        return y_BLD

    def attend(
        self, q_BHLC: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, context: AttentionContext
    ) -> Tensor:
        """Return the causal attention of the last L of S tokens, `(B, H, L, K)`.

        Args:
            q_BHLC: queries, without the position channels.
            k_BHSK: keys; their position channels are relative unless they come from a cache.
            v_BHSK: values.
            context: of the L tokens.
        """
        length, num_keys = q_BHLC.shape[-2], k_BHSK.shape[-2]
        dropout = self.attention_dropout if self.training else 0.0
        if context.cache is not None and length == 1 and k_BHSK.dtype.itemsize >= _WIDE_BYTES:
            q_BHLK = functional.pad(q_BHLC, (0, _POSITION_CHANNELS))
            mask: Tensor | None = context.bias(k_BHSK, self.num_heads)
        else:
            q_BHLK = _append(q_BHLC, context.positions(q_BHLC)[0])
            if context.cache is not None:
                digits = context.relative_digits(k_BHSK)
                k_BHSK = _append(k_BHSK[..., :-_POSITION_CHANNELS], digits)
            mask = context.seen(length, num_keys, q_BHLC.device)
        causal = mask is None and (context.cache is None or bool(length == num_keys))
        if context.weights is not None:
            return self._attend_by_weights(q_BHLK, k_BHSK, v_BHSK, mask, context.weights)
        if dropout and causal and q_BHLC.device.type == "cpu":
            return dropped_attention(q_BHLK, k_BHSK, v_BHSK, dropout)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q_BHLK.dtype)
        return functional.scaled_dot_product_attention(
            q_BHLK, k_BHSK, v_BHSK, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )

    def _attend_by_weights(
        self,
        q_BHLK: Tensor,
        k_BHSK: Tensor,
        v_BHSK: Tensor,
        mask: Tensor | None,
        weights: list[Tensor],
    ) -> Tensor:
        """Attend with whole weight matrices, and append these to the list."""
        length, num_keys = q_BHLK.shape[-2], k_BHSK.shape[-2]
        if mask is None:
            ones_LS = torch.ones(length, num_keys, dtype=torch.bool, device=q_BHLK.device)
            mask = ones_LS.tril(num_keys - length)
        scores_BHLS = q_BHLK @ k_BHSK.mT / math.sqrt(self.head_channels)
        weights_BHLS = _hide(scores_BHLS, mask).softmax(-1)
        weights.append(weights_BHLS)
        dropout = self.attention_dropout if self.training else 0.0
        return functional.dropout(weights_BHLS, dropout) @ v_BHSK

    def _heads(self, x: Tensor) -> Tensor:
        channels = x.shape[-1] // self.num_heads  # by name: an empty batch leaves -1 undecided
        return x.view(*x.shape[:-1], self.num_heads, channels).transpose(1, 2)


def _append(content: Tensor, position: Tensor) -> Tensor:
    """Append the position channels to the content of each head."""
    shape = (*content.shape[:-1], _POSITION_CHANNELS)
    return torch.cat((content, position.to(content.dtype).expand(shape)), dim=-1)


def _hide(scores: Tensor, visible: Tensor | None) -> Tensor:
    """Apply `AttentionContext.visible` to scores; a query that sees no key stays finite."""
    if visible is None:
        return scores
    least = torch.finfo(scores.dtype).min
    if visible.dtype == torch.bool:
        return scores.masked_fill(~visible.to(scores.device), least)
    return (scores + visible.to(scores)).clamp(min=least)


class AttentionLayer(MixingLayer):
    """A reversible pre-norm transformer layer (Vaswani et al., 2017) over two streams of width D.

    Args:
        d: width D.
        num_heads: heads, H.
        use_alibi: linear biases in the attention.
        attention_dropout: probability of dropping an attention weight in training.
        hidden_dropout: see `MixingLayer`.
        exact: see `MixingLayer`.
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
        super().__init__(d, hidden_dropout=hidden_dropout, exact=exact)
        self.attention = CausalSelfAttention(
            d, num_heads, use_alibi=use_alibi, attention_dropout=attention_dropout
        )

    def step(self, context: AttentionContext, layer_index: int = 0) -> StepGroup:
        """Return the layer as a step over two streams `(B, L, D)`.

        Args:
            context: of the L tokens of the streams.
            layer_index: this layer's slot in the cache.
        """

        def attend(x_BLD: Tensor) -> Tensor:
            attended: Tensor = self.attention(x_BLD, context, layer_index)
            return attended

        return self.step_with(attend, self.attention)
