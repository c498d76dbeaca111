"""`transformers.Trainer` with its own data order, checkpoints, schedule and records.

Trainer provides the loop, gradient accumulation, DDP, mixed precision, AdamW, the
cosine schedule, and the state from which a resume is bit-exact. This module adds:

* batches that are a pure function of (seed, step, rank), so a resume has nothing to skip;
* a validation loss summed over a fixed subset that is divided among the ranks;
* checkpoints that appear whole or not at all, and every rank knows which;
* a stop before a gradient that is not finite, or a loss that explodes, reaches a record, an
  evaluation or a checkpoint;
* no wait for a GPU within a step: gradient norms are read when a record is due;
* early stopping and a best step that follow from the history in the checkpoint.

Shape legend: B sequences per batch, L length.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from enigma.bijections.exact import GridError
from pipelines.data.order import BatchPlan, Indices, evenly_spaced
from pipelines.data.shards import ShardReader
from pipelines.language_model.scoring import Score, Span, batches, model_nll_nats
from pipelines.params import TrainParams
from pipelines.runs.checkpoints import building_path, checkpoint_path, discard, prune, publish
from pipelines.training.compression import CompressedGradients
from pipelines.training.history import best_step, rise_nats
from pipelines.training.optimisers import make_optimiser
from pipelines.training.ranks import (
    ExplodedError,
    NotFiniteError,
    OutOfGridError,
    SaveError,
    any_rank,
)
from pipelines.training.schedule import Schedule
from pipelines.training.weight_average import WeightAverage

NAMES = {"loss": "train_loss_nats", "grad_norm": "gradient_norm", "learning_rate": "learning_rate"}


class TrainBatches:
    """A data loader for Trainer that starts at the step of the trainer's state."""

    def __init__(self, plan: BatchPlan, reader: ShardReader, rank: int, trainer: Trainer) -> None:
        self._plan = plan
        self._reader = reader
        self._rank = rank
        self._trainer = trainer
        self._waited_s = 0.0

    def __len__(self) -> int:
        return int(self._trainer.args.max_steps) * self._plan.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(self._trainer.state.global_step, self._trainer.args.max_steps):
            for micro_step in range(self._plan.gradient_accumulation_steps):
                start_s = time.perf_counter()
                index_B = self._plan.batch(step, micro_step, self._rank)
                ids_BL = self._on_device(self._reader.gather(index_B).astype(np.int64))
                self._waited_s += time.perf_counter() - start_s
                # With a key `labels` Trainer would count targets over all ranks at every
                # step; every batch here is full, so there is nothing to count.
                yield {"input_ids": ids_BL}

    def _on_device(self, ids_BL: np.ndarray) -> torch.Tensor:
        """Copy to the GPU, if any, without waiting for what it still has to do."""
        on_host = torch.from_numpy(ids_BL)
        if self._trainer.args.device.type != "cuda":
            return on_host
        return on_host.pin_memory().to(self._trainer.args.device, non_blocking=True)

    def take_waited_s(self) -> float:
        """Return the seconds spent on making batches since the last call."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s


class EnigmaTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types
    """Trains a causal language model on shards.

    Args:
        model: An `EnigmaForCausalLM`.
        args: Trainer's arguments, made from the recipe; checkpoints go to `output_dir`.
        recipe: The recipe.
        plan: Which sequences each rank takes at a step.
        shards: The directory of the final shards.
        schedule: Decides when to evaluate, save and end.
        average: The running average of the weights, if there is one.
        callbacks: More callbacks, called after `schedule` and `average`.
    """

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None
    # The loss of a micro-batch is its own mean: Trainer divides it by their number.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        recipe: TrainParams,
        plan: BatchPlan,
        shards: Path,
        schedule: Schedule,
        average: WeightAverage | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        first = [schedule, *([average] if average else [])]
        # The buffers are constants, the same on every rank: no rank sends them. accelerate knows
        # only DDP's `broadcast_buffers`, which torch 2.13 warns of.
        buffers = [name for name, _ in model.named_buffers()]
        model._ddp_params_and_buffers_to_ignore = buffers  # noqa: SLF001 - DDP reads it
        super().__init__(model=model, args=args, callbacks=[*first, *callbacks])
        if recipe.gradient_precision == "bf16":
            settings = self.accelerator.ddp_handler.to_kwargs()
            self.accelerator.ddp_handler = CompressedGradients(**settings)
        self.remove_callback(PrinterCallback)
        self._recipe = recipe
        self._schedule = schedule
        self._average = average
        self._plan = plan
        self._train_reader = ShardReader(shards, "train")
        self._validation_reader = ShardReader(shards, "validation")
        self._validation_subset = evenly_spaced(
            len(self._validation_reader), recipe.max_validation_sequences
        )
        self._unread_norms: list[torch.Tensor] = []
        self._validation_span = Span.of(self._validation_reader, self._validation_subset)

    def get_train_dataloader(self) -> TrainBatches:
        """Return the batches unwrapped: accelerate would split them a second time."""
        return TrainBatches(self._plan, self._train_reader, self.args.process_index, self)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimiser of the recipe."""
        if self.optimizer is None:
            self.optimizer = make_optimiser(
                self._recipe.optimiser,
                self.model if model is None else model,
                lr=self._recipe.learning_rate,
                weight_decay=self._recipe.weight_decay,
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: ARG002 - Trainer's signature
        num_items_in_batch: torch.Tensor | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Mean nats per token over tokens 1..L-1 of one micro-batch.

        Raises:
            NotFiniteError: If a gradient before it was not finite.
            OutOfGridError: If an exact model's stream left its grid, on any rank.
        """
        ids_BL = inputs["input_ids"]
        loss, problem = torch.zeros(()), ""
        try:
            loss = model(input_ids=ids_BL, labels=ids_BL).loss
        except GridError as error:
            problem = str(error).partition(";")[0]
        # Only what is exact can leave a grid. A rank that ended alone would make the others wait.
        if self.model.config.exact and any_rank(bool(problem)):
            self._refuse_infinite_gradients()
            step = self.state.global_step + 1
            raise OutOfGridError(problem or "another rank's stream left its grid", step)
        return loss

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:  # noqa: ARG002
        """Return 0: nothing reads the count."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the fixed validation subset, each rank its share.

        Returns:
            The record that goes into the history, the same on every rank; empty if the
            ranks were asked to stop before they had finished.

        Raises:
            NotFiniteError: If the loss is not finite.
            ExplodedError: If it rose too far.
        """
        self._refuse_infinite_gradients()
        nll_nats = self._share_nll_nats()
        if nll_nats is None:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        mine = torch.tensor(nll_nats, dtype=torch.float64, device=self.args.device)
        score = Score(self._validation_span, float(self.accelerator.reduce(mine, "sum")))
        if not math.isfinite(score.perplexity):
            raise NotFiniteError("validation perplexity", self.state.global_step)
        record = {
            "validation_loss_nats": score.loss_nats,
            "validation_perplexity": score.perplexity,
            "validation_bits_per_character": score.bits_per_character,
        }
        self.log(record)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, record
        )
        return record

    def _share_nll_nats(self) -> float | None:
        """The sum over this rank's share of the validation subset; None if asked to stop."""
        rank, world_size = self.args.process_index, self.args.world_size
        mine, longest = (
            batches(self._validation_subset[start::world_size], self._recipe.batch_size)
            for start in (rank, 0)
        )
        nll_nats = 0.0
        # All ranks ask as often as the one with the most batches.
        for turn in range(len(longest)):
            if self._schedule.stop_is_agreed():
                return None
            nll_nats += self._nll_nats(mine[turn : turn + 1])
        return nll_nats

    def _nll_nats(self, index_batches: list[Indices]) -> float:
        model = self.model if self._average is None else self._average.model
        try:
            return model_nll_nats(model, self._validation_reader, index_batches)
        except GridError:
            return math.inf  # the sum over the ranks shows it to all of them

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Rename a record's figures, add it to the history and pass it to the callbacks."""
        self._refuse_infinite_gradients()
        record = {NAMES.get(name, name): float(value) for name, value in logs.items()}
        if "train_loss_nats" not in record and "validation_loss_nats" not in record:
            # Trainer's summary at the end: the history already holds it.
            return
        step = self.state.global_step
        record |= {"epoch": self._plan.epochs_at(step), "step": step}
        rise = rise_nats(self.state.log_history, record)
        # A callback adds what it has measured (tokens/s) before the record is kept.
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, record)
        self.state.log_history.append(record)
        # Every rank has the same history, so all end here, before a checkpoint is saved.
        if rise > self._recipe.max_loss_rise_nats:
            raise ExplodedError(rise, self._recipe.max_loss_rise_nats, step)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> torch.Tensor:
        norm: torch.Tensor = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._unread_norms.append(norm.detach())
        return norm

    def _refuse_infinite_gradients(self) -> None:
        """Read the gradient norms since the last call.

        A gradient that was not finite has spoiled the weights by then, so this comes before every
        record, evaluation and checkpoint.

        Raises:
            NotFiniteError: If one was not finite; DDP has averaged the gradients, so every rank
                sees the same norms and ends here.
        """
        if not self._unread_norms:
            return
        norms = torch.stack(self._unread_norms).tolist()
        self._unread_norms.clear()
        first = self.state.global_step - len(norms) + 1
        for step, norm in enumerate(norms, start=first):
            if not math.isfinite(norm):
                raise NotFiniteError("gradient norm", step)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of what a checkpoint lacks, but not of a head that is the embedding."""
        tied = self.model._tied_weights_keys if self.model.config.tie_word_embeddings else {}  # noqa: SLF001 - of transformers
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
        """Where Trainer writes a checkpoint until it is complete."""
        return str(building_path(Path(self.args.output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._refuse_infinite_gradients()
        directory, step = Path(self.args.output_dir), self.state.global_step
        problem = self._problem_of(lambda: self._write_checkpoint(model, trial))
        if not any_rank(problem is not None) and self.args.should_save:
            problem = self._problem_of(lambda: self._publish_checkpoint(directory, step))
        if any_rank(problem is not None):
            error = SaveError(step, problem or "another rank failed", directory)
            if self.args.should_save:
                discard(directory)
            raise error

    def _write_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._average is not None and self.args.should_save:
            building = building_path(Path(self.args.output_dir))
            self._average.save(checkpoint_path(building, self.state.global_step))

    def _publish_checkpoint(self, directory: Path, step: int) -> None:
        publish(directory, step)
        prune(directory, best_step(self.state.log_history))

    @staticmethod
    def _problem_of(action: Callable[[], None]) -> str | None:
        """The error of a full or broken disk, if any; torch and safetensors raise their own."""
        try:
            action()
        except (OSError, RuntimeError, SafetensorError) as error:
            return str(error).splitlines()[0]
        return None
