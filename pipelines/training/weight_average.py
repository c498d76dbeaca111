"""A running average of the weights, which is evaluated and published in their place.

The average over an exponentially fading past (Polyak and Juditsky, "Acceleration of
stochastic approximation by averaging", 1992) sits nearer the middle of the valley that
training bounces about in. Every rank keeps the same one: their weights are the same.
"""

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from pipelines.runs.checkpoints import AVERAGED


class WeightAverage(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Follows the weights of the model that trains.

    Args:
        decay: Weight of the past at each optimiser step, in (0, 1).
        checkpoint: Where to go on from; None to begin with the first step's weights.
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
        """Copy the model, or load the copy that the checkpoint has."""
        average = get_ema_multi_avg_fn(self._decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(model, multi_avg_fn=average)
        if self._checkpoint is not None:
            loaded = type(self.model).from_pretrained(self._checkpoint / AVERAGED)
            self.model.load_state_dict(loaded.state_dict())
            # Not the first: what follows is averaged, not copied.
            self._averaged.n_averaged.fill_(1)

    def on_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Take in the new weights."""
        if self._averaged is not None:
            self._averaged.update_parameters(model)

    def save(self, checkpoint: Path) -> None:
        """Write the averaged model beside the state of training."""
        self.model.save_pretrained(checkpoint / AVERAGED)
