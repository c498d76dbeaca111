"""The modern GPT sees no later token, knows distances, and has the parts that it is asked for."""

import pytest
import torch

from benchmarks.modern import ModernConfig, ModernGPT, rotary_tables, rotate

PARTS = [{}, {"tied": False}, {"skip": False}, {"value_embeddings": 1}, {"soft_cap": 5.0}]


def model(**parts) -> ModernGPT:
    torch.manual_seed(0)
    made = ModernGPT(ModernConfig(11, width=16, heads=2, layers=2, **parts))
    with torch.no_grad():  # branches that start at zero would hide a mistake
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.double()


@pytest.mark.parametrize("parts", PARTS)
def test_no_token_sees_a_later_one_and_every_parameter_learns(parts) -> None:
    made = model(**parts)
    ids = torch.randint(11, (2, 6))
    changed = ids.clone()
    changed[:, 3] = (ids[:, 3] + 1) % 11
    before, after = made(ids).logits, made(changed).logits
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(after[:, 3:], before[:, 3:])
    made(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("parts", PARTS)
def test_the_loss_is_that_of_the_logits(parts) -> None:
    made = model(**parts)
    ids = torch.randint(11, (2, 6))
    logits = made(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    torch.testing.assert_close(made(ids, labels=ids).loss, expected)


def test_a_score_depends_on_the_distance_alone() -> None:
    cos, sin = (table.double() for table in rotary_tables(32, 8))
    query, key = torch.randn(2, 8, dtype=torch.float64).unbind()
    q, k = (rotate(x.expand(32, 8), cos, sin) for x in (query, key))
    scores = q @ k.T
    for distance in (0, 1, 7):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)


def test_the_soft_cap_bounds_the_logits() -> None:
    assert model(soft_cap=0.5)(torch.randint(11, (1, 6))).logits.abs().max() < 0.5
