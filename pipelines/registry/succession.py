"""The gates of a successor: better than the champion on the same items, beyond chance.

The champion is scored again on the candidate's items if its own are others. It reads them in the
ids of its language model: with `tokenize.learn_characters` the id of a rare character in one corpus
is that of another one, or of none, in the next. What its vocabulary lacks is [UNK] to it, as in its
own shards, and is charged as such, which the candidate's shards do for what the candidate lacks.

Shape legend: N sequences, L length, V ids of the candidate.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.base.artifacts import verify_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import Workspace
from pipelines.data.order import Indices, evenly_spaced
from pipelines.data.shards import ShardReader, Tokens
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.data.text.vocabulary import CONTINUES, UNK_TOKEN_ID
from pipelines.language_model.comparison import NATS_PER_BIT, compare
from pipelines.language_model.losses import Losses, evaluation_set_sha256, losses_of
from pipelines.params import Profile
from pipelines.registry.evidence.verify import has_shards
from pipelines.registry.gates import Gate, Proof
from pipelines.registry.names import FLOW

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

SHARDS = (
    "run `enigma promote` where the candidate's shards are: the champion must be scored on them"
)
REPLACE = (
    "if the champion cannot be scored by this code, delete its version in MLflow: `enigma promote` "
    "then asks for the other gates alone"
)

AGAIN = "free what this machine lacks, or promote on one that has more of it"

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
    losses, fix = champion.losses, SHARDS
    same = losses is not None and champion.evaluation_set == candidate.evaluation_set
    figures = f"champion's {champion.evaluation_set}"
    if not same:
        losses, how, fix = _score_again(name, champion_files, candidate)
        figures += f"; {how}"
    gate = Gate(
        "evaluation_set",
        losses is not None,
        figures,
        f"the candidate's {candidate.evaluation_set}",
        fix,
    )
    if losses is None or candidate.losses is None:
        return [gate]
    unit, nats = (
        ("nats per dimension", 1.0) if name == FLOW else ("bits per character", NATS_PER_BIT)
    )
    bound = "the interval below 0 or containing 0" if allow_tie else "the interval below 0"
    try:
        found = compare(losses, candidate.losses, unit=unit, nats_per_unit=nats)
    except ValueError as error:
        return [gate, Gate("successor", False, str(error), bound, REPLACE)]
    holds = found.better or (allow_tie and not found.worse)
    fix = (
        "train on more text or longer"
        if found.worse
        else "train on more text or longer, or accept it with --allow-tie"
    )
    return [gate, Gate("successor", holds, str(found), bound, fix)]


def _score_again(name: str, champion: Path, candidate: Proof) -> tuple[Losses | None, str, str]:
    """Score the champion on the candidate's items, if their shards are here.

    Returns:
        The losses, what was found, and what helps if there are none.
    """
    workspace = Workspace(candidate.params.name)
    if not has_shards(candidate):
        problem = f"{workspace.shards} has not the candidate's shards"
        return None, f"the champion could not be scored again: {problem}", SHARDS
    try:
        verify_manifest(workspace.shards)
    except UserError as error:
        return None, f"the champion could not be scored again: {error.problem}", error.fix
    from torch import OutOfMemoryError

    score = _flow_losses if name == FLOW else _lm_losses
    try:
        evaluation_set, losses = score(champion / "artifacts", workspace, candidate.params.profile)
    except UserError as error:
        fix = f"{error.fix}; {REPLACE}"
        return None, f"the champion could not be scored again: {error.problem}", fix
    except (OSError, RuntimeError, ValueError) as error:
        # What transformers and torch raise of a model that was made by other code; or a fault of
        # this machine, which is no reason to delete anything.
        passing = isinstance(error, OutOfMemoryError) or getattr(error, "errno", None)
        fix = AGAIN if passing else REPLACE
        return None, f"the champion could not be scored again: {error}", fix
    if evaluation_set != candidate.evaluation_set:
        return None, f"{workspace.shards} has another one, {evaluation_set}", SHARDS
    logger.info("%s: scored the champion on the candidate's evaluation set", name)
    return losses, "the champion was scored on the candidate's", SHARDS


class _Translated(ShardReader):
    """The test split in the champion's ids, (V,) uint16 by id of the shards."""

    def __init__(self, directory: Path, ids_V: Tokens) -> None:
        super().__init__(directory, "test")
        self._ids_V = ids_V

    def gather(self, indices_B: Indices) -> Tokens:
        return self._ids_V[super().gather(indices_B)]


def _champion_ids(
    model: "EnigmaForCausalLM", directory: Path, vocabulary: ShardVocabulary
) -> Tokens:
    """Return the champion's id of every token; [UNK] for what it cannot produce."""
    from transformers import AutoTokenizer

    known = AutoTokenizer.from_pretrained(directory).get_vocab()
    found = [known.get(token, UNK_TOKEN_ID) for token in vocabulary.tokens]
    ids_V = np.array(found, dtype=np.uint16)
    if model.lm.reachable is not None:
        ids_V[~model.lm.reachable.possible.cpu().numpy()[ids_V]] = UNK_TOKEN_ID
    return ids_V


def _lm_losses(artifacts: Path, workspace: Workspace, profile: Profile) -> tuple[str, Losses]:
    from pipelines.language_model.published import load_language_model
    from pipelines.language_model.scoring import UNK_CHARGE_BITS, batches, sequence_nll_nats

    reader = ShardReader(workspace.shards, "test")
    chosen = evenly_spaced(len(reader), profile.evaluation.max_sequences)
    model = load_language_model(artifacts / "model")
    vocabulary = ShardVocabulary.read(workspace.shards)
    ids_V = _champion_ids(model, artifacts / "model", vocabulary)
    hidden_V = np.array([len(token.removeprefix(CONTINUES)) for token in vocabulary.tokens])
    hidden_V[ids_V != UNK_TOKEN_ID] = 0
    # What is [UNK] to both costs both the same.
    hidden_V[UNK_TOKEN_ID] = 0
    hidden_N = hidden_V[reader.gather(chosen)[:, 1:]].sum(axis=1)
    cut = batches(chosen, profile.evaluation.batch_size)
    nll_nats_N = sequence_nll_nats(model, _Translated(workspace.shards, ids_V), cut)
    nll_nats_N += hidden_N * UNK_CHARGE_BITS * NATS_PER_BIT
    return evaluation_set_sha256(reader, chosen), losses_of(reader, chosen, nll_nats_N)


def _flow_losses(artifacts: Path, workspace: Workspace, profile: Profile) -> tuple[str, Losses]:
    from pipelines.flow.evaluation_set import read_evaluation_set
    from pipelines.flow.state_flow import StateFlow
    from pipelines.language_model.published import load_language_model

    model = load_language_model(artifacts / "language_model")
    vocabulary = ShardVocabulary.read(workspace.shards)
    ids_V = _champion_ids(model, artifacts / "language_model", vocabulary)
    state_flow = StateFlow.load(artifacts / "model", model.device)
    judged = read_evaluation_set(
        model,
        ShardReader(workspace.shards, "test"),
        profile.sample_flow,
        noise_std=profile.train_flow.noise_std,
        read_as=_Translated(workspace.shards, ids_V),
    )
    return judged.sha256, judged.losses_of(*judged.log_likelihoods(state_flow))
