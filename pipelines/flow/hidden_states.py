"""Final hidden states of the language model at randomly chosen positions of a split.

The choice of positions is a pure function of the seed and of the split's size. Only positions
with a next token are chosen: each state comes with the token that the model was asked to predict
from it.

The states are RMS-normalised: they lie on a sphere scaled by the norm's gains, a surface on which
a density over all dimensions is infinite. So noise of a fixed size is added to train, held-out
and test states alike (ADR 4).

Shape legend: N states, S sequences, B sequences per batch, L length, P positions per sequence,
D dimensions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from enigma.bijections.constant_weights import constant_weights
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress
from pipelines.data.shards import ShardReader

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

SEQUENCES_PER_BATCH = 8

Encoder = Callable[[Tensor], Tensor]
"""Token ids (B, L) int64 -> states (B, L, D)."""


@dataclass(frozen=True)
class Positions:
    """Where states are read.

    Args:
        sequences: (S,) int64, distinct sequences of a split.
        offsets: (S, P) int64, distinct and ascending within a row, each below L - 1.
    """

    sequences: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class HiddenStates:
    """States, and the true next token of each.

    Args:
        states: (N, D) float32.
        next_tokens: (N,) int64.
        positions: Where they were read, row by row.
    """

    states: Tensor
    next_tokens: Tensor
    positions: Positions


def collect_states(
    model: "EnigmaForCausalLM",
    reader: ShardReader,
    *,
    states: int,
    states_per_sequence: int,
    seed: int,
) -> HiddenStates:
    """Collect final hidden states of a split.

    Args:
        model: The language model in evaluation mode.
        reader: A split of the final shards, in the ids of the model.
        states: Number of states to collect; a small split has fewer.
        states_per_sequence: Number of states to read from one sequence.
        seed: Seed of the choice of positions.
    """
    positions = choose_positions(
        seed=_seed_for(f"{reader.split} positions", seed),
        num_sequences=len(reader),
        sequence_length=reader.sequence_length,
        states=states,
        states_per_sequence=states_per_sequence,
    )
    return states_at(
        model.lm.hidden_states,
        reader,
        positions,
        batch_size=SEQUENCES_PER_BATCH,
        device=model.device,
    )


def choose_positions(
    *, seed: int, num_sequences: int, sequence_length: int, states: int, states_per_sequence: int
) -> Positions:
    """Choose positions at random, spread over as many sequences as the budget allows.

    In a small split more states are read from each sequence, and in the end fewer states are
    chosen than wanted: no state is chosen twice.

    Args:
        seed: Seed of the choice.
        num_sequences: Sequences of the split.
        sequence_length: Tokens per sequence.
        states: States wanted.
        states_per_sequence: States wanted per sequence; each sequence costs a whole forward
            pass, however few of its states are kept.

    Returns:
        The positions: `states` of them, rounded up to a full row, where the split is large
        enough.

    Raises:
        UserError: If the split has no sequence.
    """
    if num_sequences == 0:
        raise UserError(
            "expected sequences to read hidden states from, got an empty split",
            "give this split more documents (params.yaml: clean.split)",
        )
    rng = np.random.default_rng(seed)
    chosen = min(num_sequences, -(-states // states_per_sequence))
    width = min(sequence_length - 1, -(-states // chosen))
    sequences = rng.choice(num_sequences, size=chosen, replace=False)
    order = rng.random((chosen, sequence_length - 1)).argsort(axis=1)
    return Positions(sequences.astype(np.int64), np.sort(order[:, :width], axis=1).astype(np.int64))


def states_at(
    encode: Encoder,
    reader: ShardReader,
    positions: Positions,
    *,
    batch_size: int,
    device: torch.device,
) -> HiddenStates:
    """Run the model over the chosen sequences and keep only the chosen states.

    Args:
        encode: The language model up to its final hidden states, in evaluation mode.
        reader: The split.
        positions: Positions in it.
        batch_size: Sequences per forward pass.
        device: Where `encode` runs; the result is on the CPU.

    Returns:
        One state for each position, in the order of `positions`.
    """
    states: list[Tensor] = []
    next_tokens: list[Tensor] = []
    batches = range(0, len(positions.sequences), batch_size)
    with torch.no_grad(), constant_weights():
        for ids_BL, offsets_BP in progress(
            _batches(reader, positions, batch_size),
            total=len(batches),
            unit="batch",
            label=f"hidden states, {reader.split}",
        ):
            states_BLD = encode(ids_BL.to(device)).float().cpu()
            rows_B1 = torch.arange(len(ids_BL))[:, None]
            states.append(states_BLD[rows_B1, offsets_BP].flatten(0, 1))
            next_tokens.append(ids_BL[rows_B1, offsets_BP + 1].flatten())
    return HiddenStates(torch.cat(states), torch.cat(next_tokens), positions)


def with_noise(states_ND: Tensor, *, noise_std: float, split: str, seed: int) -> Tensor:
    """Add white noise that is a function of the seed and the split; (N, D) float32."""
    generator = torch.Generator().manual_seed(_seed_for(f"{split} noise", seed))
    return states_ND + noise_std * torch.randn(states_ND.shape, generator=generator)


def _batches(
    reader: ShardReader, positions: Positions, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(positions.sequences), batch_size):
        rows = slice(start, start + batch_size)
        ids_BL = reader.gather(positions.sequences[rows]).astype(np.int64)
        yield torch.from_numpy(ids_BL), torch.from_numpy(positions.offsets[rows])


def _seed_for(purpose: str, seed: int) -> int:
    """Derive one seed per purpose, so that no two purposes share random numbers."""
    return int(np.random.SeedSequence([seed, crc32(purpose.encode())]).generate_state(1)[0])
