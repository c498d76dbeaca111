"""What the flow over documents has learned: samples of it, and a walk from one text to another.

A document is the mean of its hidden states (`pipelines/flow/documents/passages.py`). A sample of
the flow is a mean state that belongs to no text. What a mean state says is read through the head.

Shape legend: N states, P passages, D dimensions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.data.shards import ShardReader
from pipelines.flow.decoding import cell, next_token_log_p, table
from pipelines.flow.documents.document_flow import DocumentFlow
from pipelines.flow.documents.passages import Passages, mean_states
from pipelines.flow.documents.walk import Walk, walk_between
from pipelines.flow.gaussian import Gaussian

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

SHOWN_SAMPLES = 6
SHOWN_TOKENS = 8
SHOWN_CHARACTERS = 24


@dataclass(frozen=True)
class Neighbourhood:
    """Training passages, in which the one nearest to a state is found.

    Args:
        passages: The passages.
        states: (P, D) float32, their mean states.
        gaussian: Distances are measured in the coordinates that it whitens to.
    """

    passages: Passages
    states: Tensor
    gaussian: Gaussian

    def nearest(self, states_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest passage of each state.

        Returns:
            Distances (N,) float64 and indices (N,) int64.
        """
        whiten = self.gaussian.whiten
        found = torch.cdist(whiten(states_ND), whiten(self.states)).min(dim=1)
        return found.values, found.indices


@dataclass(frozen=True)
class DocumentReport:
    """What `describe_documents` found.

    Args:
        metrics: How far samples and held-out passages are from the nearest training passage.
        walk: Between the two test passages that are farthest apart.
        markdown: Samples and walk as tables.
    """

    metrics: dict[str, float]
    walk: Walk
    markdown: str


def describe_documents(
    model: "EnigmaForCausalLM",
    tokenizer: Any,
    flow: DocumentFlow,
    shards: Path,
    *,
    passages: int,
    seed: int,
) -> DocumentReport:
    """Sample documents, find their neighbours, and walk from one test passage to another.

    Args:
        model: The language model under the flow, in evaluation mode.
        tokenizer: Its tokenizer.
        flow: The flow over documents.
        shards: The final shards.
        passages: Number of documents to sample, and of passages to read from train and from
            test at most.
        seed: Seed of the samples.
    """
    train, test = (
        Passages.of_split(ShardReader(shards, split), passages) for split in ("train", "test")
    )
    gaussian = flow.flow.gaussian
    near = Neighbourhood(train, mean_states(model, train), gaussian)
    test_PD = mean_states(model, test)
    sampled_ND = flow.flow.sample(passages, seed=seed)
    metrics = {
        f"documents_{name}nearest_distance": float(near.nearest(states_ND)[0].median())
        for name, states_ND in (("", sampled_ND), ("held_out_", test_PD))
    }
    ends = farthest_apart(gaussian.whiten(test_PD))
    walk = walk_between(flow.flow, test_PD[list(ends)])
    log_mean_V = next_token_log_p(model, near.states).exp().mean(dim=0).log()
    write = _Writer(model, tokenizer, near, log_mean_V)
    first, last = (_beginning(tokenizer, test.ids[end]) for end in ends)
    parts = [
        "# Documents that the flow has drawn\n",
        write.table(sampled_ND[:SHOWN_SAMPLES], {}),
        f"\n# From one text to another\n\nFrom “{first}” to “{last}”, both of the test split.\n",
        write.table(
            walk.states,
            {
                "of the way": [f"{share:.0%}" for share in walk.shares.tolist()],
                "nats per dimension": [f"{nll:.3f}" for nll in walk.nll_nats_per_dim.tolist()],
                "on the straight line": [
                    f"{nll:.3f}" for nll in walk.straight_nll_nats_per_dim.tolist()
                ],
            },
        ),
    ]
    return DocumentReport(metrics, walk, "\n".join(parts))


def farthest_apart(points_PD: Tensor) -> tuple[int, int]:
    """Return the indices of the two points with the largest distance, in ascending order."""
    distances_PP = torch.cdist(points_PD, points_PD)
    first, second = divmod(int(distances_PP.argmax()), len(points_PD))
    return min(first, second), max(first, second)


@dataclass(frozen=True)
class _Writer:
    """Tabulates states: what they say, and the nearest training passage.

    `log_mean_V` is the log of what the training passages say on average.
    """

    model: "EnigmaForCausalLM"
    tokenizer: Any
    near: Neighbourhood
    log_mean_V: Tensor

    def table(self, states_ND: Tensor, columns: dict[str, list[str]]) -> str:
        distances_N, indices_N = self.near.nearest(states_ND)
        passages = [self.near.passages.ids[index] for index in indices_N.tolist()]
        every = {
            **columns,
            "says above all": self._telling_tokens(states_ND),
            "nearest training passage": [_beginning(self.tokenizer, ids) for ids in passages],
            "distance": [f"{distance:.1f}" for distance in distances_N.tolist()],
        }
        return table(every)

    def _telling_tokens(self, states_ND: Tensor) -> list[str]:
        """Return the tokens that add most to the divergence from the average passage."""
        log_p_NV = next_token_log_p(self.model, states_ND)
        p_NV = log_p_NV.exp()
        # An id that cannot occur, at log-probabilities of minus infinity, tells nothing.
        telling_NV = torch.where(p_NV > 0, p_NV * (log_p_NV - self.log_mean_V), 0.0)
        best = telling_NV.topk(SHOWN_TOKENS, dim=1).indices.tolist()
        return [" ".join(cell(self.tokenizer, [token]) for token in row) for row in best]


def _beginning(tokenizer: Any, ids: Sequence[int]) -> str:
    return cell(tokenizer, ids[:SHOWN_CHARACTERS])
