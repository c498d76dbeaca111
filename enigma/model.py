"""The language model: attention layers around the machine.

Half of the attention layers, rounded up, stand before the machine and the others behind it.
`Enigma` itself is in `enigma.machine`; both are imported from here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enigma.attention import AttentionLayer, position_channels
from enigma.bijection import History, KeyValueCache, Tokens
from enigma.causal_conv import CausalConv
from enigma.invertible_conv1x1 import RotorForm
from enigma.linear import Linear
from enigma.machine import Enigma, ReturnPath
from enigma.round_trip import RoundTripReport, core_round_trip_error
from enigma.token_embedding import TokenEmbedding

__all__ = ["Enigma", "EnigmaLM", "ReturnPath", "RoundTripReport", "core_round_trip_error"]


class EnigmaLM(nn.Module):
    """A causal language model with the machine in the middle of its attention layers.

    Args:
        vocab_size: number of token ids, V.
        d: width D.
        num_rev_blocks: see `Enigma`.
        num_rotors: see `Enigma`.
        num_transformer_layers: attention layers; the first half, rounded up, stands before the
            machine.
        num_heads: attention heads, H.
        max_len: tokens of the longest training text. ALiBi reads on beyond it; learned positions
            (`use_alibi=False`) end there.
        use_alibi: linear attention biases; False takes a learned position embedding.
        use_dynamic_conv1x1: step the rotors with the token index.
        conv1x1_positions: positions of a rotor, P.
        attention_dropout: see `enigma.attention.CausalSelfAttention`.
        hidden_dropout: see `enigma.attention.AttentionLayer`.
        return_path: see `Enigma`.
        rotor_form: see `Enigma`.
        exact: see `Enigma`.
        kernel_size: see `Enigma`.
        learnable_plugboard: see `Enigma`.
        tie_word_embeddings: share the output head with the token embedding.

    Raises:
        ValueError: for a size out of range; the message names it.

    Examples:
        >>> lm = EnigmaLM(vocab_size=11, d=16, num_rev_blocks=1, num_rotors=2,
        ...               num_transformer_layers=2, num_heads=2, max_len=8, conv1x1_positions=4)
        >>> lm(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 11])
    """

    def __init__(  # noqa: PLR0917 - the published order
        self,
        vocab_size: int,
        d: int = 512,
        num_rev_blocks: int = 4,
        num_rotors: int = 4,
        num_transformer_layers: int = 6,
        num_heads: int = 8,
        max_len: int = 256,
        use_alibi: bool = True,
        use_dynamic_conv1x1: bool = True,
        conv1x1_positions: int = 16,
        *,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        return_path: ReturnPath = "reversed",
        rotor_form: RotorForm = "plu",
        exact: bool = False,
        kernel_size: int = 1,
        learnable_plugboard: bool = False,
        tie_word_embeddings: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("max_len", max_len)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_transformer_layers < 0:
            raise ValueError(
                f"num_transformer_layers must not be negative, got {num_transformer_layers}"
            )
        self.vocab_size = vocab_size
        self.d = d
        self.max_len = max_len
        self.use_alibi = use_alibi
        self.embedding = TokenEmbedding(vocab_size, d, 0 if use_alibi else max_len)
        self.layers = nn.ModuleList(
            AttentionLayer(
                d,
                num_heads,
                use_alibi=use_alibi,
                attention_dropout=attention_dropout,
                hidden_dropout=hidden_dropout,
            )
            for _ in range(num_transformer_layers)
        )
        self.core = Enigma(
            d,
            num_rev_blocks,
            num_rotors,
            conv1x1_positions,
            dynamic=use_dynamic_conv1x1,
            return_path=return_path,
            rotor_form=rotor_form,
            exact=exact,
            kernel_size=kernel_size,
            learnable_plugboard=learnable_plugboard,
        )
        self.norm = nn.RMSNorm(d)
        self.head: nn.Linear = Linear(d, vocab_size)
        if tie_word_embeddings:
            self.head.weight = self.embedding.tokens.weight
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] = partial(
            checkpoint, use_reentrant=False
        )

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Return next-token logits.

        Args:
            ids_BL: int64 `(B, L)` in [0, V).

        Returns:
            floating `(B, L, V)`: row t scores the token after t and depends on ids 0 ... t only.
        """
        return self.logits(self.hidden_states(ids_BL))

    @property
    def num_cache_slots(self) -> int:
        """Layers that a decoding cache needs: one an attention layer or pass of a convolution."""
        passes = 1 if self.core.return_path == "untied" else 2
        convolutions = sum(isinstance(m, CausalConv) for m in self.core.modules())
        return len(self.layers) + passes * convolutions

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits `(..., V)` of final hidden states `(..., D)`."""
        scores: Tensor = self.head(hidden)
        return scores

    def hidden_states(
        self,
        ids_BL: Tensor,
        *,
        keep: Tensor | None = None,
        index: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the normalised final hidden states, which the head is applied to.

        Args:
            ids_BL: int64 `(B, L)` in [0, V).
            keep: `(B, L)`, 0 at padding and 1 elsewhere; None without padding.
            index: int64 `(L,)` or `(B, L)`, each token's place in its text; None numbers them on
                from the length of the cache.
            cache: keys and values of earlier tokens; these L are appended.

        Returns:
            floating `(B, L, D)`.
        """
        if index is None:
            start = cache.get_seq_length() if cache is not None else 0
            index = torch.arange(start, start + ids_BL.shape[1], device=ids_BL.device)
        keep_BL1 = None if keep is None else keep.unsqueeze(-1).to(torch.float32)
        history = None if cache is None else History(cache, first_slot=len(self.layers))
        tokens = Tokens(index, keep_BL1, history)
        places = position_channels(index, keep_BL1, use_alibi=self.use_alibi)
        x_BLD = self.embedding(ids_BL, index)
        before_core = (len(self.layers) + 1) // 2
        for i, layer in enumerate(self.layers):
            if i == before_core:
                x_BLD = self._call(self.core, x_BLD, tokens)
            x_BLD = self._call(layer, x_BLD, places, cache, i)
        if before_core == len(self.layers):
            x_BLD = self._call(self.core, x_BLD, tokens)
        y_BLD: Tensor = self.norm(x_BLD)
        return y_BLD

    def _call(self, module: nn.Module, *arguments: Any) -> Tensor:
        """Run one part, dropping its activations if gradient checkpointing is on."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(module, *arguments)
        result: Tensor = module(*arguments)
        return result
