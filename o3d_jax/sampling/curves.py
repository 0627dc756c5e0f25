"""Whether the loop converges: a few figures of each noise level, and their plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from o3d_jax.files.atomic import written_whole
from o3d_jax.sampling.loop import Level

OPAQUE = 0.9
"""Alpha from which on a pixel counts as opaque."""

CURVES = ("curves.svg", "curves.png")
"""Names of the plot's files."""


class Figures(NamedTuple):
    """What one noise level is like."""

    psnr: float
    """Between its views and the renders of the object made from them, in dB: higher, the better
    the two networks agree."""
    opaque: float
    """Share of pixels in which the object hides what is behind."""
    opacity: float
    """Mean over the Gaussians."""
    movement: float
    """From the views of the level before, root of the mean square over pixels; 0 at the first."""


TITLES = (
    "PSNR between views and renders, dB",
    f"share of pixels with alpha of {OPAQUE:g} or more",
    "mean opacity of the Gaussians",
    "movement of the views since the level before",
)
"""Titles of the plots of the figures, in their order."""


def figures_of(levels: Sequence[Level]) -> list[Figures]:
    """Returns the figures of each level, of which the first is the highest noise."""
    rows = []
    for before, level in zip((None, *levels[:-1]), levels, strict=True):
        views = level.views / 255
        error = np.mean((views - level.renders / 255) ** 2)
        moved = 0.0 if before is None else np.sqrt(np.mean((views - before.views / 255) ** 2))
        rows.append(
            Figures(
                # A difference of one step in one of 100 pixels is the least that is told from 0.
                psnr=float(-10 * np.log10(max(error, 1e-2 / 255**2))),
                opaque=float(np.mean(level.alpha >= OPAQUE * 255)),
                opacity=float(np.mean(level.gaussians.opacities)),
                movement=float(moved),
            )
        )
    return rows


def draw_loop(folder: Path, runs: Mapping[str, Sequence[Level]]) -> None:
    """Plots the figures of named runs over their noise levels, as curves.svg and curves.png.

    Levels that made no object have none. The last run is drawn over the others. The same levels
    give the same bytes.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title, name in zip(figure.subplots(2, 2).flat, TITLES, Figures._fields, strict=True):
        for run, all_levels in runs.items():
            levels = [level for level in all_levels if level.reconstructed]
            values = [getattr(row, name) for row in figures_of(levels)]
            first = 1 if name == "movement" else 0
            sigmas = [level.sigma for level in levels]
            axes.plot(sigmas[first:], values[first:], ".-", label=run, linewidth=1.2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("noise level sigma")
        axes.set_xscale("log")
        axes.invert_xaxis()  # As it runs: from much noise to none.
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend(fontsize=8)

    with matplotlib.rc_context({"svg.hashsalt": "o3d", "svg.fonttype": "none"}):
        for file in CURVES:
            with written_whole(folder / file) as temporary:
                metadata = {"Date": None} if file.endswith("svg") else {}
                figure.savefig(temporary, dpi=100, metadata=metadata)
