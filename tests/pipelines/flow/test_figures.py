"""What the figures of a flow show, on clouds whose axes are known."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from pipelines.flow.figures import NUM_MARGINALS, draw_samples

# Each principal axis is half as wide as the one before; the mean is far from the origin.
WIDTHS = 0.5 ** torch.arange(15)
Drawn = dict[str, Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figures by file name. They are not rendered: that would take a second for each."""
    figures: Drawn = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **_: figures.update({Path(path).name: figure})
    )
    return figures


def axes_of(num_dims: int) -> torch.Tensor:
    """Principal axes, one per row, that are turned against the dimensions."""
    generator = torch.Generator().manual_seed(9)
    return torch.linalg.qr(torch.randn(num_dims, num_dims, generator=generator)).Q


def cloud(num_dims: int, *, count: int = 500, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    along_axes = torch.randn(count, num_dims, generator=generator) * WIDTHS[:num_dims]
    return 40 + along_axes @ axes_of(num_dims)


@pytest.mark.parametrize(("num_dims", "axes"), [(15, [1, 3, 5, 7, 9, 11, 13, 15]), (3, [1, 2, 3])])
def test_marginals_are_of_evenly_spaced_axes_each_once(
    drawn: Drawn, tmp_path: Path, num_dims: int, axes: list[int]
) -> None:
    assert len(axes) <= NUM_MARGINALS
    draw_samples({"real": cloud(num_dims), "flow": cloud(num_dims, seed=1)}, tmp_path)
    panels = [panel for panel in drawn["marginals.png"].axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == [f"principal axis {axis}" for axis in axes]
    centres = [sum(panel.get_xlim()) / 2 for panel in panels]
    widths = [panel.get_xlim()[1] - panel.get_xlim()[0] for panel in panels]
    assert widths == sorted(widths, reverse=True), "from the widest axis to the narrowest"
    assert all(abs(c) < w / 4 for c, w in zip(centres, widths, strict=True)), "the mean is 0"


def test_a_marginal_shows_shares_of_all_states(drawn: Drawn, tmp_path: Path) -> None:
    real = cloud(4)
    # Four times as many, a quarter of them far outside of what is shown.
    flow = torch.cat([real, real, real, real + 1000])
    draw_samples({"real": real, "flow": flow}, tmp_path)
    panel = drawn["marginals.png"].axes[0]
    # A step histogram goes up and down again: the heights are every second corner.
    shares = sorted(patch.get_xy()[1:-1:2, 1].sum() for patch in panel.patches)
    real_share = shares[1]
    # Ends at 0.1 % and 99.9 % leave one state of 500 out on each side.
    assert 0.99 <= real_share < 1.0
    assert shares[0] == pytest.approx(0.75 * real_share, abs=1e-6)


def test_each_cloud_has_a_panel_on_the_axes_of_the_real_states(
    drawn: Drawn, tmp_path: Path
) -> None:
    clouds = {"real": cloud(4), "flow": cloud(4, seed=1), "Gaussian": cloud(4, seed=2)}
    clouds["flow"] += 3.0 * axes_of(4)[0]
    draw_samples(clouds, tmp_path)
    panels = [panel for panel in drawn["projection.png"].axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == list(clouds)
    means = []
    for panel in panels:
        [hexagons] = panel.collections
        counts, places = hexagons.get_array(), hexagons.get_offsets()
        assert counts.sum() <= 500
        means.append(float((counts * places[:, 0]).sum() / counts.sum()))
    assert means[0] == pytest.approx(0.0, abs=0.2)
    assert abs(means[1]) == pytest.approx(3.0, abs=0.3)
    assert means[2] == pytest.approx(0.0, abs=0.2)
