"""A running average of the weights, evaluated and published in their place.

The average over an exponentially fading past (Polyak and Juditsky, "Acceleration of
stochastic approximation by averaging", 1992) lies nearer the middle of the valley in
which training oscillates. All ranks have the same weights, so all keep the same average.
"""

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from pipelines.runs.checkpoints import AVERAGED


class WeightAverage(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Averages the weights of the model in training.

    Args:
        decay: Weight of the past at each optimiser step, in (0, 1).
        checkpoint: Checkpoint to resume from; None to start from the first step's weights.
    """

    def __init__(self, decay: float, checkpoint: Path | None) -> None:
        self._decay = decay
        self._checkpoint = checkpoint
        self._averaged: AveragedModel | None = None

    @property
    def model(self) -> Any:
        """The averaged model; there is none before training begins."""
        return None if self._averaged is None else self._averaged.module

    def on_train_begin(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Copy the model, or load the average from the checkpoint."""
        average = get_ema_multi_avg_fn(self._decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(model, multi_avg_fn=average)
        if self._checkpoint is not None:
            loaded = type(self.model).from_pretrained(self._checkpoint / AVERAGED)
            self.model.load_state_dict(loaded.state_dict())
            # At 0 the next update would copy the weights; at 1 it averages them.
            self._averaged.n_averaged.fill_(1)

    def on_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Add the new weights to the average."""
        if self._averaged is not None:
            self._averaged.update_parameters(model)

    def save(self, checkpoint: Path) -> None:
        """Write the averaged model next to the training state."""
        self.model.save_pretrained(checkpoint / AVERAGED)
