"""Training without stored activations, for the models of this package and for any other."""

from enigma.reversible.backward import (
    NON_REENTRANT,
    Checkpoint,
    MemoryMode,
    run_steps,
    run_streams,
    undo_steps,
)
from enigma.reversible.sequence import ReversibleSequence
from enigma.reversible.steps import BijectionStep, Call, CouplingStep, Step, Streams

__all__ = [
    "NON_REENTRANT",
    "BijectionStep",
    "Call",
    "Checkpoint",
    "CouplingStep",
    "MemoryMode",
    "ReversibleSequence",
    "Step",
    "Streams",
    "run_steps",
    "run_streams",
    "undo_steps",
]
