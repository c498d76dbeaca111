"""What `EnigmaForCausalLM.forward` is given, checked and brought to what `EnigmaLM` reads.

Which keys a query sees is decided here where the causal kernels do not know it: in packed texts and
static caches.

Legend: B batch, L new tokens, S keys, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Places",
    "find_places",
    "index_of",
    "kept",
    "one_of",
    "packed_texts",
    "refuse_padding_inside",
]


@dataclass(frozen=True)
class Places:
    """Where new tokens stand in their texts, and what they see.

    Attributes:
        mask: `(B, L)`, 0 at padding; None without padding.
        index: int64 `(B, L)`, the index of each token in its text; None counts on from the cache.
        visible: which keys a query sees, see `AttentionContext`.
        starts: bool `(B, L)`, where one of several packed texts starts; None for one text per row.
    """

    mask: Tensor | None
    index: Tensor | None
    visible: Tensor | None
    starts: Tensor | None


def find_places(
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Any,
    given: Tensor,
    *,
    packed: Tensor | None,
    kernel_size: int,
    num_driven_rotors: int,
    reads_ids: bool,
) -> Places:
    """Find the places of new tokens.

    Args:
        attention_mask: of 2 or 4 dimensions, see `EnigmaForCausalLM.forward`.
        position_ids: int64 `(B, L)`.
        cache: of transformers, before the new tokens are put into it.
        given: their ids or embeddings, `(B, L, ...)`.
        packed: which keys are visible if `position_ids` are those of several packed texts.
        kernel_size: of the model's convolutions, which read earlier tokens whatever is visible.
        num_driven_rotors: layers of the model that read earlier tokens whatever is visible.
        reads_ids: whether the model has an n-gram memory or a pointer, which need to know where a
            text starts.

    Raises:
        ValueError: for texts in a row that these would read across; for packed texts with a cache;
            for a mask or positions of another shape than the tokens; see `refuse_padding_inside`.
    """
    length = given.shape[1]
    if not torch.compiler.is_compiling():  # an export has to hold for any length
        _check_shapes(attention_mask, position_ids, cache, length)
    visible = packed
    if attention_mask is not None and attention_mask.ndim == 4:
        floating = attention_mask.is_floating_point()
        visible, attention_mask = attention_mask if floating else attention_mask.bool(), None
        _refuse_if_texts_mix(kernel_size, num_driven_rotors, "a mask of 4 dimensions")
        if reads_ids:
            raise ValueError(
                "expected a mask of 2 dimensions in a model with an n-gram memory or a pointer, "
                "got one of 4, which does not say where a text starts; to fix this: pass one text "
                "per row, or position_ids that start again at each text, without a mask"
            )
    elif packed is not None:
        _refuse_if_texts_mix(kernel_size, num_driven_rotors, "position_ids of several packed texts")
        if cache is not None:
            raise ValueError(
                "expected use_cache=False with position_ids of several packed texts, got True"
            )
    elif cache is not None and cache.layers[0].is_compileable:
        visible = _filled_keys(cache, length, given.device)
    starts = None if packed is None or position_ids is None else _text_starts(position_ids)
    if attention_mask is not None and (reads_ids or kernel_size > 1):
        refuse_padding_inside(attention_mask)
    if attention_mask is not None and position_ids is None:
        position_ids = index_of(attention_mask)
    # Without a cache all tokens are new, and a slice would fix sizes in an export.
    if cache is not None:
        attention_mask, position_ids = _last(attention_mask, length), _last(position_ids, length)
    return Places(attention_mask, position_ids, visible, starts)


def _last(per_token: Tensor | None, length: int) -> Tensor | None:
    return None if per_token is None else per_token[..., per_token.shape[-1] - length :]


def index_of(mask_BS: Tensor) -> Tensor:
    """Return the index of each token in its text, int64 `(B, S)`: padding does not count.

    Examples:
        >>> index_of(torch.tensor([[0, 0, 1, 1, 1]]))
        tensor([[0, 0, 0, 1, 2]])
    """
    return (mask_BS.long().cumsum(-1) - 1).clamp(min=0)


def refuse_padding_inside(mask_BS: Tensor) -> None:
    """Raise a ValueError for padding between tokens of a text.

    For models that read the tokens just before each one where they stand. Not on a GPU, which the
    check would make wait, nor in a compiled program.

    Args:
        mask_BS: 0 at padding, of all tokens, those in a cache included.
    """
    if mask_BS.device.type != "cpu" or torch.compiler.is_compiling():
        return
    real_BS = (mask_BS != 0).long()
    starts_B = (real_BS.diff(prepend=torch.zeros_like(real_BS[:, :1])) > 0).sum(-1)
    if bool((starts_B > 1).any()):
        raise ValueError(
            "expected padding before or after each text in a model with kernel_size above 1, an "
            "n-gram memory or a pointer, got padding inside the text of row "
            f"{int(starts_B.argmax())}, behind which they forget what comes before; to fix this: "
            "pad prompts on the left, as with tokenizer.padding_side = 'left'"
        )


def _check_shapes(
    attention_mask: Tensor | None, position_ids: Tensor | None, cache: Any, length: int
) -> None:
    """Raise a ValueError for a mask that is not that of all tokens, or positions of too few."""
    if position_ids is not None:
        surplus = position_ids.shape[-1] - length  # with a cache that of earlier tokens is cut off
        if position_ids.ndim != 2 or surplus < 0 or (surplus and cache is None):
            raise ValueError(
                f"expected position_ids of shape (B, L) = (B, {length}), got "
                f"{tuple(position_ids.shape)}"
            )
    if attention_mask is None or attention_mask.ndim == 4:
        return
    earlier = 0
    if cache is not None:
        if cache.layers[0].is_compileable:  # to ask it for its length, a GPU would have to wait
            return
        earlier = cache.get_seq_length()
    if attention_mask.ndim != 2 or attention_mask.shape[1] != earlier + length:
        raise ValueError(
            f"expected attention_mask of shape (B, cached + L) = (B, {earlier + length}), got "
            f"{tuple(attention_mask.shape)}; to fix this: give it a column for every token, those "
            "in the cache included"
        )


def one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return the ids or the embeddings; check that there are either, with a batch dimension."""
    if input_ids is None:
        if inputs_embeds is None:
            raise ValueError("expected either input_ids or inputs_embeds, got neither")
        return inputs_embeds
    if inputs_embeds is not None:
        raise ValueError("expected either input_ids or inputs_embeds, got both")
    if input_ids.ndim != 2:
        raise ValueError(
            f"expected input_ids of shape (B, L), got {tuple(input_ids.shape)}; to fix this: give "
            "a single text a batch dimension, input_ids.unsqueeze(0)"
        )
    return input_ids


def kept(per_token: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Return the last tokens of `(B, L, ...)`, or those at given indices; all of them for 0."""
    if isinstance(logits_to_keep, Tensor):
        return per_token[:, logits_to_keep]
    return per_token[:, -logits_to_keep:] if logits_to_keep else per_token


def _refuse_if_texts_mix(kernel_size: int, num_driven_rotors: int, what: str) -> None:
    for name, got, most, readers in (
        ("kernel_size", kernel_size, 1, "convolutions"),
        ("num_driven_rotors", num_driven_rotors, 0, "rotors"),
    ):
        if got > most:
            raise ValueError(
                f"expected {name}={most} with {what}, got {got}, whose {readers} would read across "
                "texts; to fix this: pass one text per row with a mask of 2 dimensions"
            )


def _text_starts(position_ids_BL: Tensor) -> Tensor:
    """Return where another text starts in a row, bool `(B, L)`: positions do not go up by one."""
    return position_ids_BL.diff(prepend=position_ids_BL[:, :1] - 1) != 1


def packed_texts(position_ids_BL: Tensor) -> Tensor | None:
    """Return which keys are visible in packed texts, bool `(B, 1, L, L)`; None without such.

    A new text starts wherever the positions do not go up by one. Whether there is one is read from
    the tensor, except in an export, which has to hold for any positions.

    Examples:
        >>> packed_texts(torch.tensor([[0, 1, 0]]))[0, 0].long()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 0, 1]])
    """
    if position_ids_BL.ndim != 2:  # `find_places` refuses them
        return None
    starts_BL = _text_starts(position_ids_BL)
    if not torch.compiler.is_compiling() and not bool(starts_BL.any()):
        return None
    text_BL = starts_BL.cumsum(-1)
    return (text_BL.unsqueeze(2) == text_BL.unsqueeze(1)).tril().unsqueeze(1)


def _filled_keys(cache: Any, length: int, device: torch.device) -> Tensor:
    """Return which keys of a static cache `length` new tokens see, bool `(1, 1, L, S)`.

    Args:
        cache: a `transformers.StaticCache`, before the new tokens are put into it.
        length: new tokens, L.
        device: of the result.
    """
    num_keys, _ = cache.get_mask_sizes(length, 0)
    last_L = torch.arange(length, device=device) + cache.get_seq_length()
    visible: Tensor = torch.arange(num_keys, device=device) <= last_L.view(1, 1, -1, 1)
    return visible
