"""The language model: attention layers around the machine.

Half of the attention layers, rounded up, stand before the machine and the others after it. `Enigma`
is defined in `enigma.bijections.machine` and can be imported from here too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn

from enigma.attention import AttentionContext, AttentionLayer, fitting_heads
from enigma.bijections.base import ConvolutionCache, KeyValueCache, TokenContext
from enigma.bijections.exact import round_to_grid
from enigma.bijections.machine import Enigma, ReturnPath
from enigma.bijections.round_trip import RoundTripReport, core_round_trip_error
from enigma.bijections.step_groups import StepGroup
from enigma.driven_rotor import RotorLayer
from enigma.invertible_conv1x1 import RotorForm
from enigma.language_model.inputs import index_of, refuse_padding_inside
from enigma.language_model.prediction import Prediction
from enigma.layers.causal_conv import CausalConv
from enigma.layers.linear import Linear
from enigma.layers.norm import rms_normalise
from enigma.reversible import (
    NON_REENTRANT,
    Call,
    Checkpoint,
    MemoryMode,
    Step,
    Streams,
    run_steps,
)
from enigma.token_embedding import TokenEmbedding

__all__ = ["Enigma", "EnigmaLM", "ReturnPath", "RoundTripReport", "core_round_trip_error"]


class EnigmaLM(Prediction):
    """A causal language model with the machine in the middle of its attention layers.

    Args:
        vocab_size: number of token ids, V.
        d: width D.
        num_rev_blocks: reversible blocks of the machine.
        num_rotors: rotors of the machine, 0 for none.
        num_transformer_layers: attention layers; the first half, rounded up, stands before the
            machine.
        num_heads: attention heads, H; None takes the largest number up to 8 that fits D.
        max_len: tokens of the longest training text. ALiBi reads beyond it; learned positions
            (`use_alibi=False`) end there.
        use_alibi: linear attention biases; False takes a learned position embedding.
        use_dynamic_conv1x1: step the rotors with the token index.
        conv1x1_positions: positions of a rotor, P; None takes the largest up to 16 that divides D.
        attention_dropout: probability of dropping an attention weight in training; 0 by default,
            where `EnigmaConfig` has 0.15.
        hidden_dropout: probability of dropping a channel of a residual branch in training.
        return_path: "reversed", "untied" or "inverse", see `Enigma`.
        rotor_form: "plu" or "lifting", see `enigma.invertible_conv1x1`.
        exact: compute both streams on the grid of exact mode, in the attention layers too: the
            whole model can then be undone bit for bit. Needs lifting rotors.
        kernel_size: taps of the causal convolution in the coupling networks; 1 for none.
        learnable_plugboard: learn which channels are swapped.
        num_driven_rotors: layers of rotors that the text drives, before all other layers, see
            `enigma.driven_rotor`; 0 for none.
        rotor_channels: of a driven rotor.
        rotor_reflections: of a driven rotor per token.
        tie_word_embeddings: share the output head with the token embedding.
        memory: what training keeps for the backward pass, see `enigma.reversible.run_steps`.
        num_reachable: ids that have a logit of their own, see `set_reachable`; None for all.
        ngram_sizes: for each order of an n-gram memory how many n-grams it has, and how many follow
            one context at most, see `set_ngrams`; None for no memory.
        pointer_channels: of the pointer to earlier places of the text, see
            `enigma.language_model.memory.pointer`; 0 for none.

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
        num_heads: int | None = None,
        max_len: int = 256,
        use_alibi: bool = True,
        use_dynamic_conv1x1: bool = True,
        conv1x1_positions: int | None = None,
        *,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        return_path: ReturnPath = "reversed",
        rotor_form: RotorForm = "plu",
        exact: bool = False,
        kernel_size: int = 1,
        learnable_plugboard: bool = False,
        num_driven_rotors: int = 0,
        rotor_channels: int = 8,
        rotor_reflections: int = 4,
        tie_word_embeddings: bool = True,
        memory: MemoryMode = "plain",
        num_reachable: int | None = None,
        ngram_sizes: list[list[int]] | None = None,
        pointer_channels: int = 0,
    ) -> None:
        super().__init__()
        _check_not_below(1, vocab_size=vocab_size, max_len=max_len)
        _check_not_below(
            0, num_transformer_layers=num_transformer_layers, num_driven_rotors=num_driven_rotors
        )
        _check_not_below(0, pointer_channels=pointer_channels)
        if memory not in get_args(MemoryMode):
            raise ValueError(f"memory must be one of {get_args(MemoryMode)}, got {memory!r}")
        for name, share in (
            ("attention_dropout", attention_dropout), ("hidden_dropout", hidden_dropout)
        ):  # fmt: skip
            if not 0.0 <= share < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        num_heads = fitting_heads(d, num_heads)
        self.d = d
        self.memory = memory
        self.exact = exact
        self.kernel_size = kernel_size
        self.max_len = max_len
        self.use_alibi = use_alibi
        self.embedding = TokenEmbedding(vocab_size, d, 0 if use_alibi else max_len)
        mixing: dict[str, Any] = {"hidden_dropout": hidden_dropout, "exact": exact}
        self.rotor_layers = nn.ModuleList(
            RotorLayer(d, rotor_channels, rotor_reflections, **mixing)
            for _ in range(num_driven_rotors)
        )
        attention = mixing | {"use_alibi": use_alibi, "attention_dropout": attention_dropout}
        self.layers = nn.ModuleList(
            AttentionLayer(d, num_heads, **attention) for _ in range(num_transformer_layers)
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
        self.head: nn.Linear = Linear(d, vocab_size)
        if tie_word_embeddings:
            self.head.weight = self.embedding.tokens.weight
        self.allocate(num_reachable, ngram_sizes, pointer_channels)
        # Layers of a decoding cache: one per attention layer, driven rotor, pass of a convolution.
        passes = 1 if return_path == "untied" else 2
        convolutions = sum(isinstance(module, CausalConv) for module in self.core.modules())
        self.num_key_slots = num_transformer_layers + num_driven_rotors + passes * convolutions

    if TYPE_CHECKING:

        def __call__(self, ids_BL: Tensor | None, *, head: bool = True, **options: Any) -> Tensor:
            """Call `forward` and the hooks."""

    def forward(self, ids_BL: Tensor | None, *, head: bool = True, **options: Any) -> Tensor:
        """Return next-token logits.

        Args:
            ids_BL: int64 `(B, L)` or, for a single text, `(L,)`, in [0, V).
            head: False returns the final hidden states instead.
            **options: keyword arguments of `hidden_states`.

        Returns:
            floating `(B, L, V)` or `(L, V)`: row t scores the token after t and depends on ids
            0 ... t only.

        Raises:
            ValueError: for logits in training while `leave_one_out` is set.
        """
        if head:
            self.refuse_counted_targets()
        single = ids_BL is not None and ids_BL.ndim == 1
        if single:
            ids_BL = cast("Tensor", ids_BL).unsqueeze(0)
            if options.get("mask") is not None:
                options["mask"] = options["mask"].reshape(1, -1)
        out = self._hidden_states(ids_BL, **options)
        if head:
            mask, cache = options.get("mask"), options.get("cache")
            found = self.evidence(out, ids_BL, mask, cache, visible=options.get("visible"))
            out = self.logits(out, found)
        return out[0] if single else out

    def hidden_states(
        self,
        ids_BL: Tensor | None,
        *,
        rows: Tensor | None = None,
        mask: Tensor | None = None,
        index: Tensor | None = None,
        cache: KeyValueCache | None = None,
        visible: Tensor | None = None,
        weights: list[Tensor] | None = None,
        states: list[Tensor] | None = None,
        memory: MemoryMode | None = None,
        checkpoint_function: Checkpoint = NON_REENTRANT,
    ) -> Tensor:
        """Return the normalised final hidden states, the input of the head.

        Args:
            ids_BL: int64 `(B, L)` in [0, V); None with `rows`.
            rows: floating `(B, L, D)`, token embeddings to use instead of those of ids.
            mask: `(B, L)`, or `(L,)` with ids of that shape; 0 at padding and 1 elsewhere; None
                without padding. With n-grams, a pointer or a kernel of more than one tap there may
                be none between tokens of a text, nor between these and those of the cache.
            index: int64 `(L,)` or `(B, L)`, the index of each token in its text; None counts the
                tokens that the mask leaves or, with a cache, all tokens from its length.
            cache: keys and values of earlier tokens; these L are appended. Nothing is then
                recomputed in training, which would append them again.
            visible: which keys a query sees, see `AttentionContext`. It masks attention and the
                pointer only: convolutions, driven rotors and n-grams read earlier tokens whatever
                is visible. The Hugging Face adapter refuses that mix.
            weights: receives the attention weights `(B, H, L, S)` of every layer.
            states: receives what the head would read before every attention layer, `(B, L, D)`.
                Nothing is then recomputed in training, since the states are stored anyway.
            memory: replaces the model's own mode in training.
            checkpoint_function: see `enigma.reversible.run_steps`.

        Returns:
            floating `(B, L, D)`.

        Raises:
            ValueError: for a mask of another shape or with padding inside a text, see
                `refuse_padding_inside`, or a cache in a model without attention layers.
        """
        return self(
            ids_BL,
            head=False,
            rows=rows,
            mask=mask,
            index=index,
            cache=cache,
            visible=visible,
            weights=weights,
            states=states,
            memory=memory,
            checkpoint_function=checkpoint_function,
        )

    def _hidden_states(
        self,
        ids_BL: Tensor | None,
        *,
        rows: Tensor | None = None,
        mask: Tensor | None = None,
        index: Tensor | None = None,
        cache: KeyValueCache | None = None,
        visible: Tensor | None = None,
        weights: list[Tensor] | None = None,
        states: list[Tensor] | None = None,
        memory: MemoryMode | None = None,
        checkpoint_function: Checkpoint = NON_REENTRANT,
    ) -> Tensor:
        given = ids_BL if rows is None else rows
        if given is None:
            raise ValueError("expected ids or rows of token embeddings, got None for both")
        shape = given.shape[:2]
        # An export has to hold for any length.
        if mask is not None and not torch.compiler.is_compiling() and mask.shape != shape:
            raise ValueError(f"mask must have the shape {tuple(shape)}, got {tuple(mask.shape)}")
        if mask is not None and (self.reads_ids or self.kernel_size > 1):
            refuse_padding_inside(mask)
        if index is None and mask is not None and cache is None:
            index = index_of(mask)
        if index is None:
            start = cache.get_seq_length() if cache is not None else 0
            index = torch.arange(given.shape[1], device=given.device) + start
        if self.reachable is not None and ids_BL is not None:
            ids_BL = self.reachable.rows(ids_BL)
        x_BLD = self.embedding(ids_BL, index, rows)
        if self.exact:
            x_BLD = round_to_grid(x_BLD)
        steps = self.steps(index, mask=mask, cache=cache, visible=visible, weights=weights)
        if states is not None:
            steps = [
                each
                for step in steps
                for each in ((_Record(states), step) if step.stream_numbers == (0, 1) else (step,))
            ]
        # A branch that fills a list or a cache must run once.
        learns = self.training and torch.is_grad_enabled()
        recomputes = learns and states is None and weights is None and cache is None
        mode = (memory or self.memory) if recomputes else "plain"
        total_BLD = run_steps(steps, (x_BLD, x_BLD), mode, checkpoint_function)
        return rms_normalise(total_BLD)

    def steps(
        self,
        index: Tensor,
        *,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        visible: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> list[Step | StepGroup]:
        """Return the path of the signal: invertible steps over two streams `(B, L, D)`.

        Both streams start as the token embedding. The machine moves the second one, which the
        attention layers read. The head reads the normalised sum of the two.

        Args:
            index: int64 `(L,)` or `(B, L)`, the index of each token in its text.
            mask: see `hidden_states`.
            cache: see `hidden_states`.
            visible: see `hidden_states`.
            weights: see `hidden_states`.
        """
        if cache is not None and not self.layers:
            raise ValueError(
                "expected no cache in a model without attention layers, as a cache is as long as "
                "their keys, got one; to fix this: read the whole text without a cache, or build "
                "the model with num_transformer_layers=1 or more"
            )
        mask_BL1 = None if mask is None else mask.unsqueeze(-1).to(torch.float32)
        convolutions = (
            None if cache is None else ConvolutionCache(cache, first_slot=len(self.layers))
        )
        context = TokenContext(index, mask_BL1, convolutions)
        attention = AttentionContext(
            index, mask_BL1,
            use_alibi=self.use_alibi, cache=cache, visible=visible, weights=weights,
        )  # fmt: skip
        layers = [
            cast("AttentionLayer", layer).step(attention, slot)
            for slot, layer in enumerate(self.layers)
        ]
        rotors = [cast("RotorLayer", layer).step(context) for layer in self.rotor_layers]
        before_core = (len(layers) + 1) // 2
        return [
            *rotors,
            *layers[:before_core],
            StepGroup(
                self.core.steps(context, stream=1), (1,), partial(self.core, context=context)
            ),
            *layers[before_core:],
        ]


def _check_not_below(least: int, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < least:
            wanted = f"at least {least}" if least else "0 or more"
            raise ValueError(f"{name} must be {wanted}, got {value}")


class _Record(Step):
    """Changes nothing; appends what the head would read here to a list."""

    stream_numbers = (0, 1)

    def __init__(self, states: list[Tensor]) -> None:
        self._states = states

    @property
    def parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    @property
    def modules(self) -> list[nn.Module]:
        """None."""
        return []

    def run(self, x: Streams, call: Call) -> Streams:  # noqa: ARG002 - it has no branch
        """Record; see the base class."""
        self._states.append(rms_normalise(x[0] + x[1]))
        return x

    def undo(self, y: Streams) -> Streams:
        """Return the streams; see the base class."""
        return y

    def backtrack(self, y: Streams, grad_y: Streams, call: Call) -> tuple[Streams, list[Any]]:  # noqa: ARG002
        """Return the streams and their gradients; see the base class."""
        return y, [*grad_y]
