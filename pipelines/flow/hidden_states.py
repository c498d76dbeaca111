"""Final hidden states of the language model at randomly chosen positions of a split.

Which positions are taken is a pure function of the seed and of the split's size.
Only positions with a next token are taken, so that each state comes with the token
that the model was asked to predict from it.

Shape legend: N states, B sequences of a batch, L length, P positions a sequence,
D dimensions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress
from pipelines.data.shards import ShardReader

Encoder = Callable[[Tensor], Tensor]
"""Token ids (B, L) int64 -> states (B, L, D)."""


@dataclass(frozen=True)
class Positions:
    """Where states are taken.

    Args:
        sequences: (S,) int64, distinct sequences of a split.
        offsets: (S, P) int64, distinct and ascending in a row, each below L - 1.
    """

    sequences: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class HiddenStates:
    """States, and the true next token of each.

    Args:
        states: (N, D) float32.
        next_tokens: (N,) int64.
        positions: Where they were taken, row by row.
    """

    states: Tensor
    next_tokens: Tensor
    positions: Positions


def choose_positions(
    *, seed: int, num_sequences: int, sequence_length: int, states: int, states_per_sequence: int
) -> Positions:
    """Choose positions at random, spread over as many sequences as the budget allows.

    A small split gives more states a sequence than asked for, and in the end
    fewer states: never a state twice.

    Args:
        seed: Seed of the choice.
        num_sequences: Sequences of the split.
        sequence_length: Tokens per sequence.
        states: States wanted.
        states_per_sequence: States wanted of one sequence; each sequence costs
            a whole forward pass, however few of its states are kept.

    Returns:
        The positions: `states` of them, rounded up to a full row, where the
        split is large enough.

    Raises:
        UserError: If the split has no sequence.
    """
    if num_sequences == 0:
        raise UserError(
            "expected sequences to take hidden states from, got an empty split",
            "give this split more documents (params.yaml: clean.split)",
        )
    rng = np.random.default_rng(seed)
    chosen = min(num_sequences, -(-states // states_per_sequence))
    width = min(sequence_length - 1, -(-states // chosen))
    sequences = rng.choice(num_sequences, size=chosen, replace=False)
    order = rng.random((chosen, sequence_length - 1)).argsort(axis=1)
    return Positions(sequences.astype(np.int64), np.sort(order[:, :width], axis=1).astype(np.int64))


def collect(
    encode: Encoder,
    reader: ShardReader,
    positions: Positions,
    *,
    batch_size: int,
    device: torch.device,
) -> HiddenStates:
    """Run the model over the chosen sequences and keep the chosen states only.

    Args:
        encode: The language model up to its final hidden states, in evaluation
            mode.
        reader: The split.
        positions: What `choose_positions` chose for it.
        batch_size: Sequences a forward pass.
        device: Where `encode` runs; the result is on the CPU.

    Returns:
        A state for each chosen position, in the order of `positions`.
    """
    states: list[Tensor] = []
    next_tokens: list[Tensor] = []
    batches = range(0, len(positions.sequences), batch_size)
    with torch.no_grad():
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


def _batches(
    reader: ShardReader, positions: Positions, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(positions.sequences), batch_size):
        rows = slice(start, start + batch_size)
        ids_BL = reader.gather(positions.sequences[rows]).astype(np.int64)
        yield torch.from_numpy(ids_BL), torch.from_numpy(positions.offsets[rows])
