"""What became of all samples: counts, what each threshold dropped, speed, and a picture of the similarities.

Every finished prompt leaves a line in ``samples.jsonl``, so that the report also counts what earlier runs of
the same command did.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dataset_creation.pairs.maker import MadePrompt, MakerOptions, reasons
from ldm.files import replacing
from ldm.pictures.sheet import sheet
from ldm.pictures.typesetting import text_font

SIMILARITIES = {
    "clip_sim_0": "picture 0 and caption 0",
    "clip_sim_1": "picture 1 and caption 1",
    "clip_sim_dir": "direction",
    "clip_sim_image": "both pictures",
}
BINS, LOWEST, HIGHEST = 60, -0.2, 1.0  # of the histograms
WIDTH, HEIGHT, LINE = 480, 150, 20  # of one of them and of its text, in pixels


@dataclass
class Report:
    """Counts of a run and those before it in the same folder.

    Attributes:
        prompts: finished ones.
        skipped_lines: of the prompts file, that are no prompts.
        samples, kept: pairs drawn and kept.
        dropped: samples by what they failed; one can fail several.
        surplus: samples that failed nothing, but came after the best.
        seconds: spent on all prompts, by all workers together.
        pairs_per_hour: kept ones, by one worker.
        histograms: of each similarity how many samples fell into each of `BINS` from `LOWEST` to `HIGHEST`.
    """

    prompts: int = 0
    skipped_lines: int = 0
    samples: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    surplus: int = 0
    seconds: float = 0.0
    pairs_per_hour: float = 0.0
    histograms: dict[str, list[int]] = field(default_factory=lambda: {n: [0] * BINS for n in SIMILARITIES})

    def add(self, line: dict[str, Any]) -> None:
        """Count a prompt by its line of ``samples.jsonl``."""
        self.prompts += 1
        self.samples += line["samples"]
        self.kept += line["kept"]
        self.dropped.update(line["dropped"])
        self.surplus += line["surplus"]
        self.seconds += line["seconds"]
        self.pairs_per_hour = 3600 * self.kept / self.seconds if self.seconds else 0.0
        for name, values in line["similarities"].items():
            for value in values:
                place = int((value - LOWEST) / (HIGHEST - LOWEST) * BINS)
                self.histograms[name][min(max(place, 0), BINS - 1)] += 1

    def losses(self) -> str:
        parts = [f"{name} {count}" for name, count in sorted(self.dropped.items())]
        return ", ".join(parts) or "none"

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts, {self.samples} samples, {self.kept} kept; dropped by {self.losses()}; "
            f"{self.pairs_per_hour:.1f} pairs an hour a worker"
        )

    def write(self, file: Path) -> None:
        """Write the report as JSON, and the histograms beside it as a picture."""
        with replacing(file) as part:
            part.write_text(json.dumps(vars(self), indent=1) + "\n", encoding="utf-8", newline="\n")
        if any(map(any, self.histograms.values())):
            with replacing(file.with_suffix(".png")) as part:
                self.picture().save(part, "PNG")

    def picture(self) -> Image.Image:
        """Histograms of the four similarities, one above the other."""
        rows = [[cell] for name, counts in self.histograms.items() for cell in (_title(name), _bars(counts))]
        return sheet(rows, [WIDTH], [LINE, HEIGHT + LINE] * len(self.histograms))


def _title(name: str) -> str:
    return f"{name}: {SIMILARITIES[name]}"


def _bars(counts: Sequence[int]) -> Image.Image:
    """A histogram above its axis."""
    picture = Image.new("RGB", (WIDTH, HEIGHT + LINE), "white")
    draw, font = ImageDraw.Draw(picture), text_font(LINE - 7)
    wide = WIDTH // BINS
    for i, count in enumerate(counts):
        tall = round(HEIGHT * count / max(1, *counts))
        draw.rectangle((i * wide, HEIGHT - tall, (i + 1) * wide - 1, HEIGHT), fill="steelblue")
    draw.line((0, HEIGHT, WIDTH, HEIGHT), fill="black")
    for tick in range(round((HIGHEST - LOWEST) / 0.2) + 1):
        x = round(0.2 * tick / (HIGHEST - LOWEST) * WIDTH)
        anchor = "la" if x == 0 else "ra" if x == WIDTH else "ma"  # the outer ones within the picture
        draw.text((x, HEIGHT + 3), f"{LOWEST + 0.2 * tick:.1f}", fill="gray", font=font, anchor=anchor)
    return picture


def line_of(made: MadePrompt, options: MakerOptions, seconds: float) -> dict[str, Any]:
    """What ``samples.jsonl`` and `Report` note of a prompt."""
    found = [reasons(sample, options) for sample in made.samples]
    rated = [asdict(sample.similarities) for sample in made.samples if sample.similarities]
    return {
        "prompt": made.prompt.number,
        "samples": len(made.samples),
        "kept": len(made.kept),
        "dropped": dict(Counter(name for names in found for name in names)),
        "surplus": sum(not names for names in found) - len(made.kept),
        "seconds": round(seconds, 3),
        "similarities": {name: [round(row[name], 4) for row in rated] for name in SIMILARITIES if rated},
    }
