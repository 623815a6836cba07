"""A picture of curves: how far edits change as was asked against how much they keep.

Figures 8 and 10 of Brooks et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldm.files import replacing
from metrics.curve.curves import BANDED, CONFIDENCE, Curve, decimal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (6.4, 4.8)  # inches
DPI = 200  # of a PNG
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
MARKERS = "osD^vPX"
STYLE = {
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(curves: Sequence[Curve], files: Sequence[Path]) -> None:
    """Draw curves into one picture, with the confidence of the means where it is known.

    Args:
        curves: of `metrics.curve.curves.read_curves`.
        files: the picture in every format that a suffix names, such as ``.pdf`` and ``.png``. The same curves
            make the same bytes.

    Raises:
        UserError: a file cannot be written.
    """
    import matplotlib.style  # late: whoever imports this file may have nothing to draw
    from matplotlib.figure import Figure

    # "default": not what the settings of the user's matplotlib say.
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(SIZE, layout="constrained")
        axes = figure.add_subplot(
            xlabel="CLIP Text-Image Direction Similarity", ylabel="CLIP Image Similarity"
        )
        for k, curve in enumerate(curves):
            colour = COLOURS[k % len(COLOURS)]
            x, y = curve.means["sim_direction"], curve.means["sim_image"]
            axes.plot(x, y, marker=MARKERS[k % len(MARKERS)], color=colour, markersize=4)
            if curve.bands:
                across, along = (
                    np.abs(curve.bands[name] - curve.means[name]) for name in ("sim_direction", "sim_image")
                )
                axes.errorbar(
                    x, y, xerr=across, yerr=along, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6
                )
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        key = "numbers: " + " or ".join(dict.fromkeys(curve.varied for curve in curves))
        if any(curve.bands for curve in curves):
            key += f"\nbars: {CONFIDENCE:.0%} confidence"
        labels = [curve.label for curve in curves]
        axes.legend(
            axes.get_lines(), labels, title=key, title_fontsize="small", alignment="left", framealpha=1
        )
        _write_scales(figure, axes, curves)
        for file in files:
            with replacing(file) as part:
                form = file.suffix[1:]
                undated = {"CreationDate": None} if form == "pdf" else {}
                figure.savefig(part, format=form, dpi=DPI, metadata=undated)


def _write_scales(figure: Figure, axes: Axes, curves: Sequence[Curve]) -> None:
    """Write at the points which scale they are of, the ends of curves first, wherever there is room."""
    figure.draw_without_rendering()  # places everything
    places = [np.stack([curve.means[name] for name in BANDED], axis=1) for curve in curves]  # [K, 2] of each
    markers = axes.transData.transform(np.concatenate(places))
    taken = [axes.legend_.get_window_extent()] if axes.legend_ else []
    points = [
        (min(k, len(curve.scales) - 1 - k), line.get_color(), decimal(scale), place)
        for line, curve, of_curve in zip(axes.get_lines(), curves, places, strict=True)
        for k, (scale, place) in enumerate(zip(curve.scales, of_curve, strict=True))
    ]
    for _, colour, scale, place in sorted(points, key=lambda point: point[0]):
        text = axes.annotate(
            scale, place, (5, 4), textcoords="offset points", fontsize="x-small", color=colour
        )
        box = text.get_window_extent()
        if box.count_contains(markers) or box.count_overlaps(taken):
            text.remove()
        else:
            taken.append(box)
