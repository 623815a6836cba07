"""Edits samples at every setting and rates them by CLIP (Brooks et al. 2022, section 4.2), one row an edit.

The noise of an edit follows from the seed and the sample, so neither order, batch size nor a stop in
between changes a number. Not here: which samples (`eval_samples`), how they are edited (`edit_methods`),
what the rows come to (`curves`).

B samples, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.json_lines import JsonLines
from ldm.device import memory_errors
from ldm.sampling.noise import derived_seed
from ldm.util import UserError
from metrics.clip_similarity import ClipSimilarity
from metrics.curve.curves import SIMILARITIES, setting_key
from metrics.curve.edit_methods import EditMethod, Setting
from metrics.curve.gallery import Gallery
from metrics.curve.samples import EvalSample, EvalSamples
from metrics.curve.scale_sheet import SAMPLES


@dataclass(frozen=True)
class Evaluation:
    """An evaluation and its folder.

    Attributes:
        method: edits.
        samples: to edit.
        settings: to edit each of them at.
        clip: compares.
        folder: where pictures go.
        seed: of the noise.
        batch_size: samples edited at once.
        as_published: give CLIP the pictures as the published program does, in [-1, 1] and edits not even
            clamped to that, in place of [0, 1].
    """

    method: EditMethod
    samples: EvalSamples
    settings: Sequence[Setting]
    clip: ClipSimilarity
    folder: Path
    seed: int
    batch_size: int
    as_published: bool = False

    def run(self, results: JsonLines) -> list[dict[str, Any]]:
        """Do what `results` has no row of yet; all rows.

        Raises:
            UserError: a sample that cannot be read, an edit that is not a number, or too little memory.
        """
        rows = list(results.rows)
        done = {(row["sample"], setting_key(row)) for row in rows}
        names = {setting: setting_key(asdict(setting)) for setting in self.settings}
        wanted = [(number, name) for number in self.samples.numbers for name in names.values()]
        left = [edit for edit in wanted if edit not in done]
        todo = list(dict.fromkeys(number for number, _ in left))
        batches = [todo[i : i + self.batch_size] for i in range(0, len(todo), self.batch_size)]
        gallery = Gallery(self.folder, set(sorted(self.samples.numbers)[:SAMPLES]), rows)
        there = len(wanted) - len(left)
        with tqdm(total=len(wanted), initial=there, desc="edits", unit="edit", smoothing=0.05) as bar:
            for numbers in batches:
                samples = [self.samples.read(number) for number in numbers]
                for setting in self.settings:
                    missing = [x for x in samples if (x.number, names[setting]) not in done]
                    if missing:
                        rows += self._edit(missing, setting, results, gallery)
                        bar.update(len(missing))
        return rows

    def _edit(
        self, samples: Sequence[EvalSample], setting: Setting, results: JsonLines, gallery: Gallery
    ) -> list[dict[str, Any]]:
        """Edit and rate samples at one setting, and add their rows, which are returned."""
        seeds = [derived_seed(self.seed, "noise", sample.number) for sample in samples]
        with memory_errors(f"edit {len(samples)} pictures at once (--batch-size)"):
            edited = self.method.edit(samples, setting, seeds).float()  # [B, 3, H, W]
        if not edited.isfinite().all():
            raise UserError(f"an edit in {self.method.precision} is not a number: try --precision fp32")
        before = torch.stack([sample.before for sample in samples]).to(edited.device)
        similarities = self.rate(before, edited, samples)
        rows = [
            {"sample": sample.number, "name": sample.name, "edit": sample.edit, **asdict(setting), **values}
            for sample, values in zip(samples, similarities, strict=True)
        ]
        gallery.add(samples, edited, rows)
        for row in rows:
            results.append(row)
        return rows

    def rate(self, before: Tensor, edited: Tensor, samples: Sequence[EvalSample]) -> list[dict[str, float]]:
        """Similarities of B samples by name; pictures [B, 3, H, W], about [-1, 1]."""
        if not self.as_published:
            before, edited = ((x.clamp(-1, 1) + 1) / 2 for x in (before, edited))
        values = self.clip(before, edited, [s.input for s in samples], [s.output for s in samples])
        return [dict(zip(SIMILARITIES, row, strict=True)) for row in torch.stack(values, dim=1).tolist()]
