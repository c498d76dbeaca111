"""The gates of a successor: better than the champion on the same items, beyond chance."""

import logging
from pathlib import Path

from pipelines.base.errors import UserError
from pipelines.base.workspace import Workspace
from pipelines.language_model.comparison import NATS_PER_BIT, compare
from pipelines.language_model.losses import Losses, evaluation_set_sha256, losses_of
from pipelines.params import Profile
from pipelines.registry.gates import Gate, Proof
from pipelines.registry.names import FLOW

logger = logging.getLogger(__name__)


def succession_gates(
    name: str, champion: Proof, candidate: Proof, champion_files: Path, *, allow_tie: bool
) -> list[Gate]:
    """Compare a candidate with the champion.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        champion: Its proof.
        candidate: Its proof.
        champion_files: The champion's version. It is scored again on the candidate's
            evaluation set if its own is another one.
        allow_tie: Accept a candidate that is not worse.

    Returns:
        The gate `evaluation_set` and, if that passes, the gate `successor`.
    """
    losses = champion.losses
    same = losses is not None and champion.evaluation_set == candidate.evaluation_set
    figures = f"champion's {champion.evaluation_set}"
    if not same:
        losses, how = _score_again(name, champion_files, candidate)
        figures += f"; {how}"
    gate = Gate(
        "evaluation_set",
        losses is not None,
        figures,
        f"the candidate's {candidate.evaluation_set}",
        "run `enigma promote` where the candidate's shards are: the champion must be scored on "
        "them",
    )
    if losses is None or candidate.losses is None:
        return [gate]
    unit, nats = (
        ("nats per dimension", 1.0) if name == FLOW else ("bits per character", NATS_PER_BIT)
    )
    found = compare(losses, candidate.losses, unit=unit, nats_per_unit=nats)
    holds = found.better or (allow_tie and not found.worse)
    fix = (
        "train on more text or longer"
        if found.worse
        else "train on more text or longer, or accept it with --allow-tie"
    )
    bound = "the interval below 0 or containing 0" if allow_tie else "the interval below 0"
    return [gate, Gate("successor", holds, str(found), bound, fix)]


def _score_again(name: str, champion: Path, candidate: Proof) -> tuple[Losses | None, str]:
    """Score the champion on the candidate's items, if their shards are here."""
    workspace = Workspace(candidate.params.name)
    score = _flow_losses if name == FLOW else _lm_losses
    try:
        evaluation_set, losses = score(champion / "artifacts", workspace, candidate.params.profile)
    except UserError as error:
        return None, f"the champion could not be scored again: {error.problem}"
    if evaluation_set != candidate.evaluation_set:
        return None, f"{workspace.shards} has another one, {evaluation_set}"
    logger.info("%s: scored the champion on the candidate's evaluation set", name)
    return losses, "the champion was scored on the candidate's"


def _lm_losses(artifacts: Path, workspace: Workspace, profile: Profile) -> tuple[str, Losses]:
    from pipelines.data.order import evenly_spaced
    from pipelines.data.shards import ShardReader
    from pipelines.language_model.published import load_language_model
    from pipelines.language_model.scoring import batches, sequence_nll_nats

    reader = ShardReader(workspace.shards, "test")
    chosen = evenly_spaced(len(reader), profile.evaluation.max_sequences)
    model = load_language_model(artifacts / "model")
    cut = batches(chosen, profile.evaluation.batch_size)
    losses = losses_of(reader, chosen, sequence_nll_nats(model, reader, cut))
    return evaluation_set_sha256(reader, chosen), losses


def _flow_losses(artifacts: Path, workspace: Workspace, profile: Profile) -> tuple[str, Losses]:
    from pipelines.flow.evaluation_set import read_evaluation_set
    from pipelines.flow.state_flow import StateFlow
    from pipelines.language_model.published import load_language_model

    model = load_language_model(artifacts / "language_model")
    state_flow = StateFlow.load(artifacts / "model", model.device)
    judged = read_evaluation_set(
        model, workspace.shards, profile.sample_flow, noise_std=profile.train_flow.noise_std
    )
    return judged.sha256, judged.losses_of(*judged.log_likelihoods(state_flow))
