"""One rank of a training run; `pipelines.train` starts it under torchrun.

    torchrun --nproc-per-node RANKS -m pipelines.training.worker runs/<fingerprint>

Exit code 0 means that another attempt would change nothing: the run has finished, was
asked to stop, or failed for a reason that `outcome.json` names. Any other exit code makes
torchrun restart the group from the newest complete checkpoint.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar

from pipelines.base.run_stage import run_stage
from pipelines.data.order import BatchPlan, SequenceOrder
from pipelines.data.shards import ShardReader
from pipelines.language_model.published import new_language_model
from pipelines.params import TrainParams
from pipelines.runs.checkpoints import checkpoint_path, newest_complete
from pipelines.runs.directory import Outcome, RunConfig, RunDirectory
from pipelines.runs.hardware import describe_device
from pipelines.runs.mlflow_run import ENDINGS, open_run_log
from pipelines.runs.progress import Progress
from pipelines.runs.recorder import Recorder
from pipelines.training.history import patience_is_over
from pipelines.training.memory import choose_memory
from pipelines.training.ranks import TrainingFailure
from pipelines.training.schedule import Schedule
from pipelines.training.trainer import EnigmaTrainer
from pipelines.training.weight_average import WeightAverage

STOP_PATIENCE_S = 2.0

logger = logging.getLogger(__name__)


def main() -> None:
    """Train as one rank of the group that torchrun's environment describes."""
    # Otherwise every checkpoint draws a bar for its one file.
    disable_progress_bar()
    run = RunDirectory(Path(sys.argv[1]))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = run.read_config()
    if rank == 0:
        run.write_device(describe_device())
        logger.info("training on %s", run.read_device())
    run_log = open_run_log(run, config) if rank == 0 else None
    try:
        outcome = train_rank(run, config, rank=rank, world_size=world_size)
    except TrainingFailure as error:
        outcome = Outcome("failed", _last_step(run), error.problem, error.fix)
    if run_log is not None:
        run.write_outcome(outcome)
        # A stop must be quick; the next attempt sends the rest.
        patience_s = STOP_PATIENCE_S if outcome.status == "stopped" else None
        run_log.finish(ENDINGS[outcome.status], patience_s)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train_rank(run: RunDirectory, config: RunConfig, *, rank: int, world_size: int) -> Outcome:
    """Train from the newest complete checkpoint to the end, or until asked to stop.

    Args:
        run: The directory of the run.
        config: Its configuration.
        rank: This process.
        world_size: Number of processes.

    Returns:
        How it ended.

    Raises:
        TrainingFailure: If another attempt would fail in the same way, as for a loss or
            gradient that is not finite.
    """
    recipe = config.train
    reader = ShardReader(config.shards, "train")
    order = SequenceOrder(len(reader), recipe.seed)
    plan = BatchPlan(order, recipe.batch_size, world_size, recipe.gradient_accumulation_steps)
    torch.use_deterministic_algorithms(recipe.deterministic)
    # All ranks start from the same weights; dropout differs (see Schedule).
    torch.manual_seed(recipe.seed)
    model = new_language_model(config.model, config.shards, config.ngrams)
    args = trainer_arguments(recipe, run.checkpoints, steps=config.steps, world_size=world_size)
    model.config.memory = model.lm.memory = _memory(
        model, config, args, length=reader.sequence_length, ranks_here=world_size // config.nodes
    )
    checkpoint = _resume_point(run, args)
    schedule = Schedule(
        run=run,
        steps=config.steps,
        evaluate_every_steps=recipe.evaluate_every_steps,
        patience=recipe.early_stopping_patience,
        seed=recipe.seed,
        rank=rank,
    )
    signal.signal(signal.SIGTERM, lambda *_: setattr(schedule, "signalled", True))
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if patience_is_over(state.log_history, recipe.early_stopping_patience):
            # Killed between the last checkpoint and the outcome: Trainer would train on.
            return Outcome("finished", int(state.global_step))
        args.eval_on_start = schedule.owes_evaluation(state.global_step, state.log_history)
    recorder = Recorder(
        run.metrics,
        tokens_per_step=config.tokens_per_step,
        sequence_length=reader.sequence_length,
    )
    trainer = EnigmaTrainer(
        model=model,
        args=args,
        recipe=recipe,
        plan=plan,
        shards=config.shards,
        schedule=schedule,
        average=None if recipe.ema_decay is None else WeightAverage(recipe.ema_decay, checkpoint),
        # The recorder must come before Progress, which shows the speed that it measures.
        callbacks=[recorder, *([Progress()] if rank == 0 else [])],
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    status: Literal["stopped", "finished"] = "stopped" if schedule.stopped else "finished"
    return Outcome(status, int(trainer.state.global_step))


def _memory(
    model: Any, config: RunConfig, args: TrainingArguments, *, length: int, ranks_here: int
) -> Literal["plain", "checkpoint", "reversible"]:
    """What a step keeps; "auto" is decided by what fits on the device."""
    if config.train.memory != "auto":
        return config.train.memory
    model.config.memory = model.lm.memory = "plain"
    return choose_memory(
        model.to(args.device),
        batch_size=config.train.batch_size,
        length=length,
        bf16=args.bf16,
        ranks_here=ranks_here,
    )


def trainer_arguments(
    recipe: TrainParams, directory: Path, *, steps: int, world_size: int
) -> TrainingArguments:
    """Translate the recipe for Trainer; saving and evaluating are left to `Schedule`."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        **_schedule_arguments(recipe, steps),
        warmup_steps=int(recipe.warmup_fraction * steps),
        max_grad_norm=recipe.max_gradient_norm,
        bf16=uses_bf16(recipe),
        use_cpu=not on_gpu,
        ddp_backend=("nccl" if on_gpu else "gloo") if world_size > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_timeout=recipe.rank_timeout_s,
        seed=recipe.seed,
        logging_steps=recipe.log_every_steps,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        # The step decides the order of the batches: there is nothing to skip.
        ignore_data_skip=True,
        report_to=[],
        # `Progress` shows more with less noise (pipelines/runs/progress.py).
        disable_tqdm=True,
    )


def _schedule_arguments(recipe: TrainParams, steps: int) -> dict[str, Any]:
    if recipe.schedule == "cosine":
        return {"lr_scheduler_type": "cosine"}
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {
            "num_decay_steps": int(recipe.cooldown_fraction * steps),
            "decay_type": "linear",
            "min_lr_ratio": 0.0,
        },
    }


def uses_bf16(recipe: TrainParams) -> bool:
    """Whether couplings and attention run under bf16 autocast; "auto" means on GPUs only."""
    if recipe.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return recipe.precision == "bf16"


def _resume_point(run: RunDirectory, args: TrainingArguments) -> Path | None:
    # Rank 0 looks first and deletes what is broken; the others look afterwards.
    with args.main_process_first(local=False, desc="finding the newest complete checkpoint"):
        step = newest_complete(run.checkpoints)
    return None if step is None else checkpoint_path(run.checkpoints, step)


def _last_step(run: RunDirectory) -> int:
    records = run.metrics.read()
    return int(records[-1]["step"]) if records else 0


if __name__ == "__main__":
    run_stage(main)
