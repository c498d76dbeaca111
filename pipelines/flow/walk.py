"""What the flow over documents has learned: samples of it, and a walk from one text to another.

A document is the mean of its hidden states (`pipelines/flow/passages.py`). A sample of the flow
is such a mean that no text had; the way between two texts leads through the flow's base, where a
straight line would pass closer to the middle than any text lies (White, "Sampling Generative
Networks", 2016): so it keeps its distance. What a mean state says is read through the head.

Shape legend: N states, P passages, K steps of a walk, D dimensions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.data.shards import ShardReader
from pipelines.flow.decoding import cell, next_token_log_p, table
from pipelines.flow.documents import DocumentFlow
from pipelines.flow.passages import Passages, read_passages
from pipelines.flow.states import StateFlow

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

WALK_STEPS = 9
SHOWN_SAMPLES = 6
TELLING_TOKENS = 8
SHOWN_CHARACTERS = 24


@dataclass(frozen=True)
class Neighbourhood:
    """Training passages, to find those near a state and what sets it apart from them.

    Args:
        passages: The passages.
        states: (P, D) float32, their mean states.
        flow: Distances are in the coordinates that its Gaussian whitens to.
    """

    passages: Passages
    states: Tensor
    flow: StateFlow

    def nearest(self, states_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest passage of each state.

        Returns:
            Distances (N,) float64 and indices (N,) int64.
        """
        whiten = self.flow.gaussian.whiten
        found = torch.cdist(whiten(states_ND), whiten(self.states)).min(dim=1)
        return found.values, found.indices


@dataclass(frozen=True)
class Walk:
    """The way between two states.

    Args:
        shares: (K,) float64, of the way: 0 is the first state, 1 the second.
        states: (K, D) float32 on the way through the flow's base.
        nll_nats_per_dim: (K,) -log density there.
        straight_nll_nats_per_dim: (K,) the same on the straight line between the states.
    """

    shares: Tensor
    states: Tensor
    nll_nats_per_dim: Tensor
    straight_nll_nats_per_dim: Tensor


@dataclass(frozen=True)
class DocumentReport:
    """What `describe_documents` found.

    Args:
        metrics: How far samples and held-out passages are from the nearest training passage.
        walk: Between the two test passages that lie farthest apart.
        markdown: Samples and walk as tables.
    """

    metrics: dict[str, float]
    walk: Walk
    markdown: str


def slerp(start_D: Tensor, end_D: Tensor, shares_K: Tensor) -> Tensor:
    """Turn one vector into another at an even pace, its length changing evenly too.

    Args:
        start_D: (D,), not 0.
        end_D: (D,), not 0 and not opposite to `start_D`.
        shares_K: (K,) of the way.

    Returns:
        (K, D).
    """
    lengths_2 = torch.stack((start_D.norm(), end_D.norm()))
    start_unit_D, end_unit_D = start_D / lengths_2[0], end_D / lengths_2[1]
    angle = torch.arccos((start_unit_D @ end_unit_D).clamp(-1, 1))
    share_K1 = shares_K[:, None].to(start_D)
    if angle < 1e-6:
        direction_KD = torch.lerp(start_unit_D, end_unit_D, share_K1)
    else:
        turned_KD = (angle * (1 - share_K1)).sin() * start_unit_D
        direction_KD = (turned_KD + (angle * share_K1).sin() * end_unit_D) / angle.sin()
    return direction_KD * torch.lerp(lengths_2[0], lengths_2[1], share_K1)


def walk_between(flow: StateFlow, ends_2D: Tensor, steps: int = WALK_STEPS) -> Walk:
    """Go from one state to another through the base of a flow.

    Args:
        flow: The flow.
        ends_2D: (2, D) float32.
        steps: States on the way, both ends included.
    """
    shares_K = torch.linspace(0, 1, steps, dtype=torch.float64)
    base_2D, _ = flow.to_base(ends_2D)
    states_KD = flow.from_base(slerp(base_2D[0], base_2D[1], shares_K))
    straight_KD = torch.lerp(ends_2D[0], ends_2D[1], shares_K[:, None].float())
    num_dims = ends_2D.shape[1]
    return Walk(
        shares_K,
        states_KD,
        -flow.log_prob(states_KD) / num_dims,
        -flow.log_prob(straight_KD) / num_dims,
    )


def describe_documents(
    model: "EnigmaForCausalLM",
    tokenizer: Any,
    flow: DocumentFlow,
    shards: Path,
    *,
    passages: int,
    seed: int,
) -> DocumentReport:
    """Sample documents, find what is near them, and walk from one test passage to another.

    Args:
        model: The language model under the flow, in evaluation mode.
        tokenizer: Its tokenizer.
        flow: The flow over documents.
        shards: The final shards.
        passages: So many passages of train and of test are read at most, and sampled.
        seed: Of the samples.
    """
    train, test = (
        Passages.of_split(ShardReader(shards, split), passages) for split in ("train", "test")
    )
    near = Neighbourhood(train, read_passages(model, train).states, flow.flow)
    test_PD = read_passages(model, test).states
    sampled_ND = flow.flow.sample(passages, seed=seed)
    metrics = {
        f"documents_{name}nearest_distance": float(near.nearest(states_ND)[0].median())
        for name, states_ND in (("", sampled_ND), ("held_out_", test_PD))
    }
    ends = farthest_apart(flow.flow.gaussian.whiten(test_PD))
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
    """The indices of the two points with the largest distance, in order."""
    distances_PP = torch.cdist(points_PD, points_PD)
    first, second = divmod(int(distances_PP.argmax()), len(points_PD))
    return min(first, second), max(first, second)


@dataclass(frozen=True)
class _Writer:
    """Writes states as rows: what they say and which training passage is nearest.

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
        """The tokens that add most to the divergence from what passages say on average."""
        log_p_NV = next_token_log_p(self.model, states_ND)
        telling_NV = log_p_NV.exp() * (log_p_NV - self.log_mean_V)
        best = telling_NV.topk(TELLING_TOKENS, dim=1).indices.tolist()
        return [" ".join(cell(self.tokenizer, [token]) for token in row) for row in best]


def _beginning(tokenizer: Any, ids: Sequence[int]) -> str:
    return cell(tokenizer, ids[:SHOWN_CHARACTERS])
