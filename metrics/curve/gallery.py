"""The pictures that a run keeps for its report: every edit of the first samples, and the best and worst ones.

B samples, H W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from torch import Tensor

from ldm.files import replacing
from ldm.pictures.fitting import to_image
from metrics.curve.curves import Row, picture_file, setting_key, shown
from metrics.curve.samples import EvalSample

JPEG_QUALITY = 90


class Gallery:
    """The pictures in a run's folder.

    Args:
        folder: of the run.
        first: samples whose every edit is kept.
        rows: of the edits so far.
    """

    def __init__(self, folder: Path, first: Collection[int], rows: Sequence[Row]) -> None:
        self.folder, self.first = folder, first
        self._best_and_worst: dict[tuple[int, str], Row] = {}  # by sample and `setting_key`
        self._choose(rows)

    def add(self, samples: Sequence[EvalSample], edited: Tensor, rows: Sequence[Row]) -> None:
        """Keep of new edits what the report will show, and drop what that replaces.

        Args:
            samples: B of them.
            edited: their edits, [B, 3, H, W] in [-1, 1] (clamped).
            rows: of these edits.
        """
        before = set(self._best_and_worst)
        self._choose(rows)
        now = self._best_and_worst.keys()
        for sample, picture, row in zip(samples, edited, rows, strict=True):
            key = setting_key(row)
            if sample.number in self.first or (sample.number, key) in now:
                self._save(sample.number, "input", sample.before)
                self._save(sample.number, key, picture)
        needed = {*self.first, *(number for number, _ in now)}
        for number, key in before - now:
            if number not in self.first:
                picture_file(self.folder, number, key).unlink(missing_ok=True)
            if number not in needed:
                picture_file(self.folder, number).unlink(missing_ok=True)

    def _choose(self, rows: Sequence[Row]) -> None:
        """Take the best and worst edits of those so far and these."""
        known = self._best_and_worst | {(row["sample"], setting_key(row)): row for row in rows}
        self._best_and_worst = {edit: known[edit] for edit in shown(known.values())}

    def _save(self, number: int, key: str, pixels: Tensor) -> None:
        with replacing(picture_file(self.folder, number, key)) as part:
            to_image(pixels).save(part, "JPEG", quality=JPEG_QUALITY)
