"""Every transform: shape, inverse, Jacobian and log-determinant."""

import pytest
import torch

from enigma.couplings.coupling import transform_of
from enigma.couplings.settings import COUPLINGS, CouplingSettings
from enigma.jacobian_logdet import jacobian_log_det

TRANSFORMS = {kind: transform_of(CouplingSettings(kind=kind)) for kind in COUPLINGS}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_shape_inverse_and_log_det(transform):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    raw = torch.randn(2, 4, 3 * transform.num_parameters, generator=generator, dtype=torch.float64)
    y, log_det = transform.forward(x, raw)
    again, log_det_back = transform.inverse(y, raw)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-12)
    reference = jacobian_log_det(lambda v: transform.forward(v, raw[0, 0])[0], x[0, 0])
    if log_det is None:
        assert log_det_back is None
        assert abs(reference) < 1e-12
    else:
        assert log_det.shape == (2, 4)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-10)
        assert abs(reference - log_det[0, 0]) < 1e-10


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_zeros_are_the_identity(transform):
    x = torch.randn(5, 3, dtype=torch.float64)
    zeros = torch.zeros(5, 3 * transform.num_parameters, dtype=torch.float64)
    torch.testing.assert_close(transform.forward(x, zeros)[0], x, rtol=0, atol=1e-12)
