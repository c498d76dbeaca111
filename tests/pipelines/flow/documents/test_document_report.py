"""What is near a document, and which two are farthest apart."""

import numpy as np
import pytest
import torch

from pipelines.flow.documents.document_report import Neighbourhood, farthest_apart
from pipelines.flow.documents.passages import Passages
from pipelines.flow.gaussian import Gaussian


def test_the_nearest_passage_is_measured_in_white_coordinates() -> None:
    wide = torch.diag(torch.tensor([10.0, 1.0], dtype=torch.float64))
    gaussian = Gaussian(torch.zeros(2, dtype=torch.float64), wide)
    states_PD = torch.tensor([[9.0, 0.0], [0.0, 2.0]])
    passages = Passages([[1], [2]], np.arange(2), 2)
    distances_N, indices_N = Neighbourhood(passages, states_PD, gaussian).nearest(torch.zeros(1, 2))
    assert indices_N.tolist() == [0]
    assert distances_N.item() == pytest.approx(0.9)


def test_the_two_ends_are_the_farthest_apart() -> None:
    points_PD = torch.tensor([[0.0, 0.0], [5.0, 0.0], [1.0, 1.0], [-4.0, 0.0]])
    assert farthest_apart(points_PD) == (1, 3)
