"""`transformers.Trainer` with our order of data, checkpoints, schedule and records.

What is Trainer's: the loop, gradient accumulation, DDP, mixed precision, AdamW, the
cosine schedule, and the state from which a resume goes on bit by bit. What is ours:

* the batches: a pure function of (seed, step, rank), so nothing is skipped on resume;
* the validation loss: summed over a fixed subset, divided over the ranks;
* a checkpoint counts once it is sealed;
* a gradient that is not finite ends the run before it reaches the weights;
* early stopping and the best step follow from the history in the checkpoint.

Shape legend: B sequences of a batch, L length.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipelines.checkpoints import checkpoint_path, prune, seal
from pipelines.errors import UserError
from pipelines.run_directory import RunDirectory
from pipelines.scoring import Score, Span, batches, model_nll_nats
from pipelines.sequence_order import BatchPlan, evenly_spaced
from pipelines.shards import ShardReader
from pipelines.train_history import best_step, patience_is_over

NAMES = {"loss": "train_loss_nats", "grad_norm": "gradient_norm", "learning_rate": "learning_rate"}


class NotFiniteError(UserError):
    """The loss or a gradient became infinite or not a number."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"step {step}: expected a finite {what}, came one that is not",
            "lower train.learning_rate or train.max_gradient_norm; "
            "the last checkpoint before this is kept",
        )


class TrainBatches:
    """What Trainer takes for a data loader: it starts at the step that the state is at."""

    def __init__(self, plan: BatchPlan, reader: ShardReader, rank: int, trainer: Trainer) -> None:
        self._plan = plan
        self._reader = reader
        self._rank = rank
        self._trainer = trainer

    def __len__(self) -> int:
        return int(self._trainer.args.max_steps) * self._plan.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(self._trainer.state.global_step, self._trainer.args.max_steps):
            for micro_step in range(self._plan.gradient_accumulation_steps):
                index_B = self._plan.batch(step, micro_step, self._rank)
                tokens_BL = self._reader.gather(index_B).astype(np.int64)
                # No key `labels`: Trainer would count targets over all ranks at every step,
                # and every batch here is full.
                yield {"input_ids": torch.from_numpy(tokens_BL)}


class EnigmaTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types
    """Trains a causal language model on shards.

    Args:
        model: An `EnigmaForCausalLM`.
        args: Recipe; `max_steps` is set, saving and evaluating are left to `Schedule`.
        plan: Which sequences a rank takes at a step.
        shards: The directory of the final shards.
        max_validation_sequences: Size of the fixed validation subset.
        callbacks: See `Schedule`.
    """

    control: TrainerControl
    # Each micro-batch has its own mean: Trainer divides it by their number.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        plan: BatchPlan,
        shards: Path,
        max_validation_sequences: int,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model=model, args=args, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self._plan = plan
        self._train_reader = ShardReader(shards, "train")
        self._validation_reader = ShardReader(shards, "validation")
        self._validation_subset = evenly_spaced(
            len(self._validation_reader), max_validation_sequences
        )
        self._validation_span = Span.of(self._validation_reader, self._validation_subset)

    def get_train_dataloader(self) -> TrainBatches:
        """Ours as it is: accelerate would shard it a second time."""
        return TrainBatches(self._plan, self._train_reader, self.args.process_index, self)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Weight decay acts on matrices: not on gains, biases, signs and scales."""
        return [name for name, value in model.named_parameters() if value.ndim >= 2]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: ARG002 - Trainer's signature
        num_items_in_batch: torch.Tensor | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Mean nats a token over tokens 1..L-1 of one micro-batch."""
        ids_BL = inputs["input_ids"]
        loss: torch.Tensor = model(input_ids=ids_BL, labels=ids_BL).loss
        return loss

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:  # noqa: ARG002
        """Not counted: nobody reads it."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the fixed validation subset, each rank its share.

        Returns:
            The record that goes into the history, the same on every rank.

        Raises:
            NotFiniteError: If the loss is not finite.
        """
        share = self._validation_subset[self.args.process_index :: self.args.world_size]
        nll_nats = model_nll_nats(
            self.model,
            self._validation_reader,
            batches(share, self.args.per_device_train_batch_size),
        )
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Put a record under our names into the history and hand it to the callbacks."""
        record = {NAMES.get(name, name): float(value) for name, value in logs.items()}
        if "train_loss_nats" not in record and "validation_loss_nats" not in record:
            # The summary that Trainer makes at the end: the history says it better.
            return
        step = self.state.global_step
        record |= {"epoch": self._plan.epochs_at(step), "step": step}
        # A callback adds what it has measured (tokens/s) before the record is kept.
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, record)
        self.state.log_history.append(record)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        # DDP has averaged the gradients, so every rank sees the same and ends here together.
        if not math.isfinite(norm):
            raise NotFiniteError("gradient norm", self.state.global_step + 1)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            directory, step = Path(self.args.output_dir), self.state.global_step
            seal(checkpoint_path(directory, step), step)
            prune(directory, best_step(self.state.log_history))


class Schedule(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """When to evaluate, to save and to end.

    Args:
        run: Where a wish to stop is found.
        evaluate_every_steps: An evaluation and a checkpoint come so often, and at the end.
        patience: Evaluations without a better one before training ends.
        rank: This process.
        world_size: Number of processes.
        seed: Of dropout; each rank draws its own masks.
    """

    def __init__(
        self,
        *,
        run: RunDirectory,
        evaluate_every_steps: int,
        patience: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self._run = run
        self._every = evaluate_every_steps
        self._patience = patience
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self.signalled = False
        self.stopped = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Give this rank its own dropout; a resume then restores where it was."""
        torch.manual_seed(self._seed + self._rank)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Decide what is due after an optimiser step."""
        last = state.global_step >= args.max_steps
        if last or state.global_step % self._every == 0:
            control.should_evaluate = control.should_save = True
        control.should_log = control.should_log or last
        if not last and self._stop_is_agreed(args.device):
            self.stopped = True
            control.should_save = control.should_training_stop = True
        return control

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> TrainerControl:
        """End when the patience is over; every rank has the same history."""
        if patience_is_over(state.log_history, self._patience):
            control.should_training_stop = True
        return control

    def _stop_is_agreed(self, device: torch.device) -> bool:
        """Whether any rank is asked to stop; ranks at different steps would wait for ever."""
        wish = self.signalled or self._run.stop_is_asked()
        if self._world_size == 1:
            return wish
        wishes = torch.tensor(float(wish), device=device)
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
        return bool(wishes)
