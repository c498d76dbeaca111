"""Stage `train`: the language model, trained by ranks under torchrun.

    python -m pipelines.train

This process is the launcher. It checks the preconditions before a day of compute is
spent, starts the ranks in `runs/<fingerprint>/`, and publishes the best model when
they have finished. After a kill at any moment, the same command resumes from the newest
complete checkpoint.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.base.artifacts import sha256_file, verify_manifest
from pipelines.base.certificate import check_certificate
from pipelines.base.code_hash import code_hash
from pipelines.base.errors import GateError, UserError
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import Workspace
from pipelines.params import Profile, TrainParams, load_params
from pipelines.runs.agent import MAX_RESTARTS, nodes_asked_for, run_agent
from pipelines.runs.directory import (
    FINGERPRINT_DIGITS,
    Outcome,
    RunConfig,
    RunDirectory,
    fingerprint,
)
from pipelines.runs.mlflow_run import open_run_log
from pipelines.runs.training_slot import training_slot
from pipelines.training.report import publish

CAUSALITY_LENGTH = 16
# Code that launches a run, publishes its result, generates text or is the flow's alone affects no
# weight of the language model.
WITHOUT_EFFECT_ON_WEIGHTS = (
    "enigma/bijections/round_trip.py",
    "enigma/causality.py",
    "enigma/density",
    "enigma/generation.py",
    "enigma/jacobian_logdet.py",
    "enigma/language_model/hub_card.py",
    "enigma/language_model/loading.py",
    "enigma/language_model/presets.py",
    "enigma/language_model/remote_code.py",
    "enigma/language_model/word_pieces.py",
    "pipelines/train.py",
    "pipelines/training/report.py",
)

logger = logging.getLogger(__name__)


def main() -> None:
    """Train and publish the language model of the profile in use."""
    params = load_params()
    workspace = Workspace(params.name)
    run, config = prepare(workspace, params.profile)
    with run.locked() as lock:
        outcome = run.read_outcome()
        if outcome is None or outcome.status != "finished":
            check_causality(config)
            with training_slot(f"train of {workspace.profile}") as slot:
                outcome = launch(run, config, [lock, slot])
        if outcome.status == "failed":
            raise UserError(outcome.problem, outcome.fix)
        if outcome.status == "stopped":
            raise UserError(
                f"training was asked to stop at step {outcome.step}; a checkpoint is saved",
                "run the same command to resume from there",
            )
        publish(run, config, workspace)


def prepare(workspace: Workspace, profile: Profile) -> tuple[RunDirectory, RunConfig]:
    """Check the inputs and find the directory of the run.

    Args:
        workspace: Where the inputs are.
        profile: The parameters.

    Returns:
        The directory of the run, and the configuration for its ranks.

    Raises:
        GateError: `certificate`, if these shards have no passing certificate; `ngrams`, if the
            n-grams were counted from others.
        UserError: If the shards are damaged or too few for the ranks.
    """
    certificate = workspace.report("validate") / "certificate.json"
    manifest = verify_manifest(workspace.shards)
    check_certificate(certificate, manifest["root"])
    ngrams = verify_manifest(workspace.ngrams)
    check_ngrams(workspace.ngrams, ngrams["shards_root"], manifest["root"])
    num_sequences = manifest["sequences"]["train"]
    nodes, rendezvous = nodes_asked_for(profile.train.ranks)
    check_sizes(profile.train, num_sequences=num_sequences, nodes=nodes)
    name = fingerprint(
        shards_root=manifest["root"],
        ngrams_root=ngrams["root"],
        model=profile.model,
        train=profile.train,
        code=code_hash("train", without=WITHOUT_EFFECT_ON_WEIGHTS),
    )
    config = RunConfig(
        profile=workspace.profile,
        fingerprint=name,
        steps=planned_steps(profile.train, num_sequences),
        tokens_per_step=profile.train.sequences_per_step * manifest["sequence_length"],
        nodes=nodes,
        rendezvous=rendezvous,
        shards=workspace.shards,
        shards_root=manifest["root"],
        certificate_sha256=sha256_file(certificate),
        ngrams=workspace.ngrams,
        ngrams_root=ngrams["root"],
        model=profile.model,
        train=profile.train,
    )
    return RunDirectory(workspace.runs / name[:FINGERPRINT_DIGITS]), config


def planned_steps(recipe: TrainParams, num_sequences: int) -> int:
    """Count the optimiser steps of a run that nothing ends early."""
    from pipelines.data.order import BatchPlan, SequenceOrder

    order = SequenceOrder(num_sequences, recipe.seed)
    plan = BatchPlan(order, recipe.batch_size, recipe.ranks, recipe.gradient_accumulation_steps)
    steps = plan.steps(recipe.epochs)
    return steps if recipe.max_steps is None else min(steps, recipe.max_steps)


def check_ngrams(path: Path, counted_root: str, shards_root: str) -> None:
    """Refuse a memory of other texts than those that `validate` has passed.

    Raises:
        GateError: `ngrams`.
    """
    if counted_root != shards_root:
        raise GateError(
            "ngrams",
            f"{path} was counted from shards {counted_root[:12]}..., "
            f"these are {shards_root[:12]}...",
            "run `dvc repro count_ngrams`",
        )


def check_sizes(recipe: TrainParams, *, num_sequences: int, nodes: int) -> None:
    """Refuse a batch that the data cannot fill, more ranks than GPUs, or GPUs that lie idle.

    Raises:
        UserError: If either does not fit; it names both numbers.
    """
    import torch

    from pipelines.runs.hardware import refuse_idle_gpus

    refuse_idle_gpus()
    needed = recipe.sequences_per_step
    if needed > num_sequences:
        raise UserError(
            f"expected at least {needed} train sequences for {recipe.ranks} ranks x "
            f"{recipe.batch_size} sequences x {recipe.gradient_accumulation_steps} "
            f"accumulation steps, got {num_sequences}",
            "lower train.ranks or train.batch_size, or ingest more text",
        )
    here = recipe.ranks // nodes
    if torch.cuda.is_available() and here > torch.cuda.device_count():
        raise UserError(
            f"expected a GPU for each of {here} ranks, got {torch.cuda.device_count()}",
            f"set train.ranks to the number of GPUs, and train.batch_size or "
            f"gradient_accumulation_steps so that their product stays {needed} (then a run that "
            "has begun resumes); or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPU",
        )


def check_causality(config: RunConfig) -> None:
    """Prove, before anything is spent, that the model does not see the future.

    Raises:
        GateError: `causality`, with the first leak.
    """
    import torch

    from enigma.causality import prove_causality
    from pipelines.language_model.published import new_language_model

    torch.manual_seed(config.train.seed)
    model = new_language_model(config.model, config.shards, config.ngrams)
    report = prove_causality(model, CAUSALITY_LENGTH)
    if not report.is_causal:
        raise GateError(
            "causality",
            f"the fresh model sees the future: {report.to_dict()}",
            "undo the change to enigma/ that leaks later tokens",
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "causal at every one of %d positions; %s parameters", CAUSALITY_LENGTH, f"{count:,}"
    )


def launch(run: RunDirectory, config: RunConfig, locks: Sequence[int]) -> Outcome:
    """Run the ranks until they end; TERM and Ctrl-C make them save and stop.

    Args:
        run: The directory of the run.
        config: The configuration for the ranks.
        locks: File descriptors that the ranks keep open: run and slot stay locked
            as long as one of them lives.

    Returns:
        How the ranks ended.

    Raises:
        UserError: If they died more often than torchrun may restart them.
        SystemExit: With the exit code of a shell, if torchrun itself was killed.
    """
    run.write_config(config)
    run.begin()
    logger.info("training with %d rank(s) in %s", config.train.ranks, run.path)
    if config.nodes > 1:
        logger.info(
            "on each of the %d other nodes: enigma join %s", config.nodes - 1, run.path.resolve()
        )
    code = run_agent(run, config, pass_fds=locks)
    outcome = run.read_outcome()
    if outcome is None:
        open_run_log(run, config).finish("FAILED")
        if code < 0:
            # Nobody can tell what to correct, and another try may do: no `UserError`.
            logger.error(
                "torchrun was killed by signal %d (by the kernel, if memory was short); the same "
                "command resumes from the newest complete checkpoint", -code,
            )  # fmt: skip
            sys.exit(128 - code)
        raise UserError(
            f"the ranks died (exit code {code}) after {MAX_RESTARTS} restarts",
            "read the log above; the same command resumes from the newest complete checkpoint",
        )
    logger.info("ranks ended: %s at step %d", outcome.status, outcome.step)
    return outcome


if __name__ == "__main__":
    run_stage(main)
