"""One rank of a training run; `pipelines.train` starts it under torchrun.

    torchrun --nproc-per-node RANKS -m pipelines.train_worker runs/<fingerprint>

Exit code 0 means that another try would change nothing: the run has finished, was
asked to stop, or failed for a reason that `outcome.json` names. Any other end makes
torchrun start the group again, from the newest complete checkpoint.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar

from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.checkpoints import checkpoint_path, newest_complete
from pipelines.enigma_trainer import EnigmaTrainer, NotFiniteError, Schedule
from pipelines.language_model import model_config
from pipelines.params import TrainParams
from pipelines.run_directory import Outcome, RunConfig, RunDirectory
from pipelines.sequence_order import BatchPlan, SequenceOrder
from pipelines.shards import ShardReader
from pipelines.stage import run_stage
from pipelines.tracking import RunLog
from pipelines.train_history import patience_is_over
from pipelines.train_progress import Progress


def main() -> None:
    """Train as one rank of the group that torchrun's environment describes."""
    # Every checkpoint would draw a bar for its one file.
    disable_progress_bar()
    run = RunDirectory(Path(sys.argv[1]))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = run.read_config()
    run_log = _open_run_log(run, config) if rank == 0 else None
    try:
        outcome = train_rank(run, config, rank=rank, world_size=world_size, run_log=run_log)
    except NotFiniteError as error:
        outcome = Outcome("failed", _last_step(run), error.problem, error.fix)
    if run_log is not None:
        run.write_outcome(outcome)
        ending = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        run_log.finish(ending[outcome.status])
        _remember(run, run_log)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train_rank(
    run: RunDirectory, config: RunConfig, *, rank: int, world_size: int, run_log: RunLog | None
) -> Outcome:
    """Train from the newest complete checkpoint to the end, or until asked to stop.

    Args:
        run: The directory of the run.
        config: Its configuration.
        rank: This process.
        world_size: Number of processes.
        run_log: On rank 0 the MLflow run; None elsewhere.

    Returns:
        How it ended.

    Raises:
        NotFiniteError: If a loss or gradient is not finite.
    """
    recipe = config.train
    reader = ShardReader(config.shards, "train")
    order = SequenceOrder(len(reader), recipe.seed)
    plan = BatchPlan(order, recipe.batch_size, world_size, recipe.gradient_accumulation_steps)
    steps = plan.steps(recipe.epochs)
    if recipe.max_steps is not None:
        steps = min(steps, recipe.max_steps)
    # All ranks start from the same weights; dropout differs (see Schedule).
    torch.manual_seed(recipe.seed)
    model = EnigmaForCausalLM(model_config(config.model, config.shards))
    schedule = Schedule(
        run=run,
        evaluate_every_steps=recipe.evaluate_every_steps,
        patience=recipe.early_stopping_patience,
        rank=rank,
        world_size=world_size,
        seed=recipe.seed,
    )
    signal.signal(signal.SIGTERM, lambda *_: setattr(schedule, "signalled", True))
    recorder = Recorder(run, run_log, plan.sequences_per_step * reader.sequence_length)
    trainer = EnigmaTrainer(
        model=model,
        args=trainer_arguments(recipe, run.checkpoints, steps=steps, world_size=world_size),
        plan=plan,
        shards=config.shards,
        max_validation_sequences=recipe.max_validation_sequences,
        # The recorder comes before what shows the speed that it measures.
        callbacks=[schedule, recorder, *([Progress()] if rank == 0 else [])],
    )
    checkpoint = _resume_point(run, trainer)
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if patience_is_over(state.log_history, recipe.early_stopping_patience):
            # Killed between the last checkpoint and the outcome: Trainer would train on.
            return Outcome("finished", int(state.global_step))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    status: Literal["stopped", "finished"] = "stopped" if schedule.stopped else "finished"
    return Outcome(status, int(trainer.state.global_step))


class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Measures the speed and writes each record: the local file first, MLflow second.

    Args:
        run: Where `metrics.jsonl` is.
        run_log: On rank 0 the MLflow run; None elsewhere.
        tokens_per_step: Tokens that all ranks together take in one optimiser step.
    """

    def __init__(self, run: RunDirectory, run_log: RunLog | None, tokens_per_step: int) -> None:
        self._run = run
        self._run_log = run_log
        self._tokens_per_step = tokens_per_step
        self._step_began_s = 0.0
        self._busy_s = 0.0
        self._steps = 0

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Begin the file with what the checkpoint remembers: a kill may have logged more."""
        if self._run_log is not None:
            self._run.reset_metrics(state.log_history)
            for record in state.log_history:
                self._send(record)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._step_began_s = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock: evaluations and checkpoints are not training time."""
        self._busy_s += time.perf_counter() - self._step_began_s
        self._steps += 1

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Add tokens/s to a training record, and write it down."""
        if "train_loss_nats" in logs and self._steps:
            logs["tokens_per_s"] = self._steps * self._tokens_per_step / self._busy_s
            self._busy_s, self._steps = 0.0, 0
        if self._run_log is not None:
            self._run.append_metrics(logs)
            self._send(logs)

    def _send(self, record: dict[str, float]) -> None:
        if self._run_log is not None:
            values = {name: value for name, value in record.items() if name != "step"}
            self._run_log.log(int(record["step"]), values)


def trainer_arguments(
    recipe: TrainParams, directory: Path, *, steps: int, world_size: int
) -> TrainingArguments:
    """Translate the recipe; saving and evaluating are left to `Schedule`."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        lr_scheduler_type="cosine",
        warmup_steps=int(recipe.warmup_fraction * steps),
        max_grad_norm=recipe.max_gradient_norm,
        bf16=uses_bf16(recipe),
        use_cpu=not on_gpu,
        ddp_backend=("nccl" if on_gpu else "gloo") if world_size > 1 else None,
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        logging_steps=recipe.log_every_steps,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        # The order of the batches follows from the step: there is nothing to skip.
        ignore_data_skip=True,
        report_to=[],
        # Ours shows more with less noise, see pipelines/train_progress.py.
        disable_tqdm=True,
    )


def uses_bf16(recipe: TrainParams) -> bool:
    """Whether the couplings and attention run under bf16 autocast; "auto" means on GPUs only."""
    if recipe.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return recipe.precision == "bf16"


def _resume_point(run: RunDirectory, trainer: EnigmaTrainer) -> Path | None:
    # Rank 0 looks and deletes what is broken; the others look when it has done so.
    with trainer.args.main_process_first(desc="finding the newest complete checkpoint"):
        step = newest_complete(run.checkpoints)
    return None if step is None else checkpoint_path(run.checkpoints, step)


def _open_run_log(run: RunDirectory, config: RunConfig) -> RunLog:
    run_log = RunLog.open(
        run_name=f"train/{config.profile}",
        params={
            "profile": config.profile,
            "model": config.model.model_dump(mode="json"),
            "train": config.train.model_dump(mode="json"),
        },
        tags={
            "profile": config.profile,
            "fingerprint": config.fingerprint,
            "shards_root": config.shards_root,
            "certificate_sha256": config.certificate_sha256,
        },
        run_id=run.mlflow_run_id,
    )
    run_log.dataset(
        name=f"{config.profile}/shards",
        root=config.shards_root,
        source=str(config.shards),
        context="training",
    )
    _remember(run, run_log)
    return run_log


def _remember(run: RunDirectory, run_log: RunLog) -> None:
    # There is no id for as long as the store has never been reached.
    if run_log.run_id is not None:
        run.remember_mlflow_run(run_log.run_id)


def _last_step(run: RunDirectory) -> int:
    records = run.read_metrics()
    return int(records[-1]["step"]) if records else 0


if __name__ == "__main__":
    run_stage(main)
