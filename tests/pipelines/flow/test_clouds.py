"""Samples that are not numbers are refused."""

import pytest
import torch

from pipelines.base.errors import GateError
from pipelines.flow.clouds import check_samples


def test_samples_that_are_not_finite_are_counted_and_refused() -> None:
    sampled_ND = torch.zeros(5, 3)
    check_samples(sampled_ND)
    sampled_ND[1, 2], sampled_ND[4] = torch.nan, torch.inf
    with pytest.raises(GateError, match="NaN or infinity in 2 of 5"):
        check_samples(sampled_ND)
