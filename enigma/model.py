"""The machine (`Enigma`) and the language model around it (`EnigmaLM`).

    x -> plugboard -> rotors -> blocks 1 ... n -> reflector -> blocks n ... 1 -> plugboard^T -> y

The language model puts half of its attention layers before the machine and half behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enigma.attention import AttentionLayer, position_channels
from enigma.bijection import Bijection, KeyValueCache, Tokens
from enigma.coupling import Activation, CouplingKind
from enigma.invertible_conv1x1 import (
    DynamicInvertibleConv1x1Stack,
    InvertibleConv1x1Stack,
    Start,
)
from enigma.linear import Linear
from enigma.plugboard import Plugboard
from enigma.reflector import Reflector
from enigma.rev_block import RevBlock
from enigma.token_embedding import TokenEmbedding

__all__ = ["Enigma", "EnigmaLM", "ReturnPath"]

ReturnPath = Literal["reversed", "untied", "inverse"]


@dataclass(frozen=True)
class _Stage:
    """One part on the signal's way; `step` turns the odometer further before it."""

    module: Bijection
    inverted: bool = False
    step: int = 0

    def run(self, x: Tensor, tokens: Tokens, *, backwards: bool) -> tuple[Tensor, Tensor]:
        tokens = tokens.advanced(self.step)
        if self.inverted != backwards:
            return self.module.inverse_with_log_det(x, tokens)
        return self.module.forward_with_log_det(x, tokens)


class Enigma(Bijection):
    """The reversible core: a bijection of `(..., L, D)` that depends on the token index.

    Args:
        d: width D, at least 2.
        num_rev_blocks: reversible blocks on the way out; the way back has as many.
        num_rotors: rotors, 0 for none.
        positions: positions of a rotor; must divide `d`.
        dynamic: step the rotors with the token index; False holds them still.
        coupling: see `RevBlock`.
        return_path: "reversed" passes the same blocks in the opposite order (as published),
            "untied" has blocks of its own for the way back, "inverse" undoes the way out, so
            that the machine is its own inverse like the historical one: f(f(x)) = x.
        rotors_between_blocks: pass the rotors before every block, turned one step further each
            time, instead of once before the first. A flow needs the mixing.
        hidden_channels: see `RevBlock`.
        num_hidden_layers: see `RevBlock`.
        activation: see `RevBlock`.
        normalise: see `RevBlock`.
        num_bins: see `RevBlock`.
        bound: see `RevBlock`.
        start: see `InvertibleConv1x1`.
        seed: of the plugboard.

    Raises:
        ValueError: for a width, number or choice out of range; the message names it.

    Example:
        >>> core = Enigma(d=8, num_rev_blocks=2, num_rotors=2, positions=4).double()
        >>> x = torch.randn(1, 5, 8, dtype=torch.float64)
        >>> torch.allclose(core.inverse(core(x)), x, rtol=0, atol=1e-12)
        True
    """

    def __init__(
        self,
        d: int,
        num_rev_blocks: int = 4,
        num_rotors: int = 4,
        positions: int = 16,
        *,
        dynamic: bool = True,
        coupling: CouplingKind = "additive",
        return_path: ReturnPath = "reversed",
        rotors_between_blocks: bool = False,
        hidden_channels: int | None = None,
        num_hidden_layers: int = 1,
        activation: Activation = "relu2",
        normalise: bool = True,
        num_bins: int = 8,
        bound: float = 5.0,
        start: Start = "identity",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in {"self", "__class__"}
        }
        if return_path not in get_args(ReturnPath):
            raise ValueError(
                f"return_path must be one of {get_args(ReturnPath)}, got {return_path!r}"
            )
        if num_rev_blocks < 0:
            raise ValueError(f"num_rev_blocks must not be negative, got {num_rev_blocks}")
        self.d = d
        self.return_path = return_path
        self.rotors_between_blocks = rotors_between_blocks
        self.plugboard = Plugboard(d, seed=seed)
        self.rotors = (
            DynamicInvertibleConv1x1Stack(d, num_rotors, positions, start=start)
            if dynamic
            else InvertibleConv1x1Stack(d, num_rotors, start=start)
        )
        make_block = partial(
            RevBlock,
            d,
            coupling,
            hidden_channels,
            num_hidden_layers=num_hidden_layers,
            activation=activation,
            normalise=normalise,
            num_bins=num_bins,
            bound=bound,
        )
        self.blocks = nn.ModuleList(make_block() for _ in range(num_rev_blocks))
        self.reflector = Reflector(d)
        num_return_blocks = num_rev_blocks if return_path == "untied" else 0
        self.return_blocks = nn.ModuleList(make_block() for _ in range(num_return_blocks))

    def forward_with_log_det(
        self, x: Tensor, tokens: Tokens | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encipher; see the base class for shapes."""
        return self._run(self._stages(), x, tokens, backwards=False)

    def inverse_with_log_det(
        self, y: Tensor, tokens: Tokens | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decipher; see the base class for shapes."""
        return self._run(self._stages()[::-1], y, tokens, backwards=True)

    def _run(
        self, stages: list[_Stage], x: Tensor, tokens: Tokens | None, *, backwards: bool
    ) -> tuple[Tensor, Tensor]:
        if x.shape[-1] != self.d:
            raise ValueError(f"expected (..., {self.d}), got {tuple(x.shape)}")
        tokens = tokens or Tokens.of(x)
        log_det = x.new_zeros(x.shape[:-1])
        for stage in stages:
            x, change = stage.run(x, tokens, backwards=backwards)
            log_det = log_det + change
        return x, log_det

    def _stages(self) -> list[_Stage]:
        plugged = _Stage(self.plugboard)
        way_out = self._through(list(self.blocks), first_step=0)
        middle = _Stage(self.reflector)
        if self.return_path == "inverse":
            undone = [
                _Stage(stage.module, inverted=True, step=stage.step) for stage in way_out[::-1]
            ]
            return [plugged, *way_out, middle, *undone, _Stage(self.plugboard, inverted=True)]
        untied = self.return_path == "untied"
        blocks = list(self.return_blocks if untied else self.blocks)[::-1]
        way_back = self._through(blocks, first_step=len(blocks), rotors_first=False)
        return [plugged, *way_out, middle, *way_back, _Stage(self.plugboard, inverted=True)]

    def _through(
        self, blocks: list[nn.Module], first_step: int, *, rotors_first: bool = True
    ) -> list[_Stage]:
        stages = []
        if rotors_first and not self.rotors_between_blocks:
            stages.append(_Stage(self.rotors))
        for step, block in enumerate(blocks, start=first_step):
            if self.rotors_between_blocks:
                stages.append(_Stage(self.rotors, step=step))
            if not isinstance(block, Bijection):
                raise TypeError(f"a block must be a Bijection, got {type(block).__name__}")
            stages.append(_Stage(block))
        return stages


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
        tie_word_embeddings: share the output head with the token embedding.

    Raises:
        ValueError: for a size out of range; the message names it.

    Example:
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
        tokens = Tokens(index, keep_BL1)
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
