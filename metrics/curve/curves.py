"""Runs of edits as curves: at every image guidance scale (or strength of SDEdit) the mean CLIP similarities,
with confidence bands (figures 8 and 10 of Brooks et al. 2022).

Not here: how edits are made and compared (`metrics.compute_metrics`), and pictures of curves
(`metrics.plot_metrics`).

S samples, K scales.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.json_lines import read_json_lines
from ldm.util import UserError

Row = Mapping[str, Any]  # one edit and its similarities
Numbers = NDArray[np.float64]

SUFFIX = ".samples.jsonl"
BANDED = ("sim_direction", "sim_image")  # the axes of the figures
SIMILARITIES = ("sim_0", "sim_1", *BANDED)
KEYS = {"sample", "name", "edit", "scale_text", "scale_image", "strength", *SIMILARITIES}

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Curve:
    """Mean similarities over one varied scale.

    Attributes:
        label: name in a picture.
        varied: what the scale is, "image scale" or "strength".
        scales: [K], sorted.
        means: of the similarities, each [K].
        bands: lower and upper end of the 95 % confidence band of the mean, each [2, K], of those in `BANDED`;
            empty where only averages are known.
        samples: S, those that have been edited at every scale; None where only averages are known.
    """

    label: str
    varied: str
    scales: Numbers
    means: dict[str, Numbers]
    bands: dict[str, Numbers]
    samples: int | None


def setting_key(row: Row) -> str:
    """What a picture's name says of its setting: ``t7.5_i1.2``, or ``t7.5_s0.5`` for SDEdit."""
    text, scale = setting(row)
    return f"t{text:g}_{'i' if row['strength'] is None else 's'}{scale:g}"


def picture_file(folder: Path, sample: int, key: str = "input") -> Path:
    """Where a run keeps a picture; `key` is of `setting_key`."""
    return folder / "pictures" / f"{sample}_{key}.jpg"


def setting(row: Row) -> tuple[float, float]:
    """Text scale, and the scale that a curve varies: strength where there is one, else image scale."""
    return row["scale_text"], row["scale_image"] if row["strength"] is None else row["strength"]


def setting_words(row: Row) -> list[str]:
    """Text scale and varied scale, with their names."""
    _, scale = setting(row)
    return [f"text scale {decimal(row['scale_text'])}", f"{varied(row)} {decimal(scale)}"]


def decimal(scale: float) -> str:
    """A scale as people read it: 1.0, 1.25."""
    return str(round(float(scale), 4))


def varied(row: Row) -> str:
    """Name of the scale that a curve varies."""
    return "image scale" if row["strength"] is None else "strength"


def averages(rows: Iterable[Row], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The published lines, one a setting in rising order, each over all of its rows; SDEdit adds strength."""
    groups: dict[tuple[float, float], list[Row]] = defaultdict(list)
    for row in rows:
        groups[setting(row)].append(row)
    return [
        {name: fmean(row[name] for row in group) for name in SIMILARITIES}
        | {
            "num_samples": len(group),
            "split": settings["split"],
            "scale_txt": group[0]["scale_text"],
            "scale_img": group[0]["scale_image"],
            "steps": settings["steps"],
            "res": settings["resolution"],
            "seed": settings["seed"],
        }
        | ({"strength": scale} if group[0]["strength"] is not None else {})
        for (_, scale), group in sorted(groups.items())
    ]


def ranked(rows: Iterable[Row], count: int = 6) -> tuple[list[Row], list[Row]]:
    """The edits of greatest and of least direction similarity, the extreme first, one of a sample at most."""
    order = sorted(rows, key=lambda row: (row["sim_direction"], row["sample"], setting(row)))
    return _first_of_samples(reversed(order), count), _first_of_samples(order, count)


def _first_of_samples(rows: Iterable[Row], count: int) -> list[Row]:
    """The first row of each of the first `count` samples."""
    found: dict[int, Row] = {}
    for row in rows:
        if len(found) == count:
            break
        found.setdefault(row["sample"], row)
    return list(found.values())


def shown(rows: Iterable[Row], count: int = 6) -> set[tuple[int, str]]:
    """Sample and key of the edits that `ranked` gives, whose pictures a report needs.

    An edit that is not among those so far will not be in the end, so a run that goes on need only hand in the
    rows of these and its new ones.
    """
    best, worst = ranked(rows, count)
    return {(row["sample"], setting_key(row)) for row in (*best, *worst)}


def read_run(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and rows of a run; a file of published averages has no settings, and a row a scale.

    Args:
        run: its folder, its file, or a file of published averages.

    Raises:
        UserError: no run there, or another kind of file.
    """
    if run.is_dir():
        files = sorted(run.glob(f"*{SUFFIX}"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise UserError(f"run {run}: expected a folder with one file *{SUFFIX}, got {found}")
        run = files[0]
    if not run.is_file():
        raise UserError(f"no such run: {run}; expected a folder with a file *{SUFFIX}, or that file")
    try:
        lines = [line for line in run.read_text(encoding="utf-8").split("\n") if line.strip()]
        if not lines or "settings" not in json.loads(lines[0]):
            return {}, [_of_average(json.loads(line)) for line in lines]
    except (KeyError, TypeError, AttributeError) as error:
        names = ", ".join((*BANDED, "scale_txt", "scale_img"))
        raise UserError(f"{run}: expected a run, or lines with {names}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {run}: {error}") from error
    settings, rows = read_json_lines(run)
    if any(not row.keys() >= KEYS for row in rows):
        raise UserError(f"{run}: expected rows with {', '.join(sorted(KEYS))}")
    return settings, rows


def _of_average(line: Row) -> dict[str, Any]:
    """A published line as the row of one sample that stands for all."""
    strength = line.get("strength")
    return {
        "sample": 0,
        "scale_text": float(line["scale_txt"]),
        "scale_image": float(line["scale_img"]) if strength is None else None,
        "strength": strength,
    } | {name: float(line[name]) for name in BANDED}


def read_curves(run: Path, label: str | None = None) -> list[Curve]:
    """The curves of a run, one of every text scale.

    Args:
        run: as of `read_run`.
        label: of the curves, with the text scale where there are several; the run's own name when None.

    Raises:
        UserError: as of `read_run`, or too few rows.
    """
    settings, rows = read_run(run)
    label = label or settings.get("name") or run.name.removesuffix(SUFFIX)
    try:
        return make_curves(rows, label, averaged=not settings)
    except UserError as error:
        raise UserError(f"{run}: {error}") from error


def make_curves(rows: Sequence[Row], label: str, *, averaged: bool = False) -> list[Curve]:
    """The curves of some rows; arguments and errors as of `read_curves`.

    Every scale is averaged over the same samples, those that have been edited at all of them, so that the
    scales of a run that is not done compare too.

    Args:
        rows: of a run.
        label: of the curves.
        averaged: a row stands for all samples, so there are no bands.
    """
    groups: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["scale_text"]].append(row)
    names, least = (BANDED, 1) if averaged else (SIMILARITIES, 2)
    curves = []
    for text, group in sorted(groups.items()):
        scales, samples, values = _table(group, names)
        if len(samples) < least:
            raise UserError(f"expected at least {least} samples with all of its scales, got {len(samples)}")
        bands = {} if averaged else dict(zip(BANDED, _bands(values[-len(BANDED) :]), strict=True))
        curves.append(
            Curve(
                label=f"{label}, t={text:g}" if len(groups) > 1 else label,
                varied=varied(group[0]),
                scales=np.array(scales),
                means=dict(zip(names, values.mean(axis=1), strict=True)),
                bands=bands,
                samples=None if averaged else len(samples),
            )
        )
    if not curves:
        raise UserError("expected rows, got none")
    return curves


def _table(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[float], list[int], Numbers]:
    """Scales, samples that have all of them, and the similarities [len(names), S, K]."""
    found: dict[float, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        _, scale = setting(row)
        if row["sample"] in found[scale]:
            raise UserError(f"expected one row of a sample and a setting, got two at scale {scale:g}")
        found[scale][row["sample"]] = row
    scales = sorted(found)
    samples = sorted(set.intersection(*map(set, found.values())))
    values = [[[found[scale][sample][name] for scale in scales] for sample in samples] for name in names]
    return scales, samples, np.array(values, dtype=np.float64)


def _bands(values: Numbers) -> Numbers:
    """Confidence bands of means over samples, by the bootstrap.

    A resample takes the same samples at every scale: what makes one easy does so at all of them.

    Args:
        values: [N, S, K].

    Returns:
        Lower and upper ends, [N, 2, K].
    """
    count = values.shape[1]
    generator = np.random.default_rng(0)
    means = np.stack(
        [values[:, generator.integers(count, size=count)].mean(axis=1) for _ in range(RESAMPLES)]
    )  # [RESAMPLES, N, K]
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0).swapaxes(0, 1)
