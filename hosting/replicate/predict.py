"""The editor behind Replicate's interface; cog.yaml beside it says how to build and try the container.

Cog's tools read names, bounds and defaults from the source text of `predict`: they stand there as literals.
"""

import inspect
import tempfile
from dataclasses import asdict, replace
from pathlib import Path as LocalPath
from typing import Any, get_args

from cog import BasePredictor, Input, Path

from ldm.editor import ImageEditor
from ldm.pictures.reading import open_image
from ldm.pictures.safety import BLUR_OVER, SafetyChecker, in_settings
from ldm.pictures.writing import save_image
from ldm.util import UserError


class Predictor(BasePredictor):
    """A loaded model: the published one where the image holds it, else the embedded one."""

    def setup(self) -> None:
        """Load the model and the safety checker, once for all predictions."""
        self.checker = SafetyChecker()
        self.editor = ImageEditor.load()

    def predict(
        self,
        prompt: str = Input(description="What to change, such as: turn him into a cyborg", max_length=4000),
        image: Path = Input(description="Picture to edit"),  # noqa: B008, Cog's way
        steps: int | None = Input(
            description="Denoising steps; the model's own number if left out", ge=1, le=500, default=None
        ),
        cfg_text: float | None = Input(
            description="How strongly to follow the prompt; the model's own scale if left out",
            ge=0,
            le=30,
            default=None,
        ),
        cfg_image: float | None = Input(
            description="How strongly to stay with the picture; the model's own scale if left out",
            ge=0,
            le=10,
            default=None,
        ),
        sampler: str = Input(
            description="How the noise is removed",
            choices=[
                "euler_ancestral",
                "euler",
                "heun",
                "dpm_2",
                "dpm_2_ancestral",
                "dpm_adaptive",
                "dpm_fast",
                "lms",
                "dpmpp_2s_ancestral",
                "dpmpp_sde",
                "dpmpp_2m",
                "dpmpp_2m_sde",
                "dpmpp_3m_sde",
            ],
            default="euler_ancestral",
        ),
        seed: int | None = Input(
            description="The same seed gives the same pictures; random if left out",
            ge=0,
            le=4294967295,
            default=None,
        ),
        num_outputs: int = Input(
            description="How many pictures: the second takes seed + 1, and so on", ge=1, le=4, default=1
        ),
        disable_safety_checker: bool = Input(
            description="Do not blur results that look pornographic; the check knows no other harm, and errs",
            default=False,
        ),
    ) -> list[Path]:
        """Edit one picture; the results are PNG files that hold their settings."""
        given = {name: value for name, value in locals().items() if name != "self"}
        check_inputs(given)
        sampling = self.editor.defaults.but(
            steps=steps, cfg_text=cfg_text, cfg_image=cfg_image, sampler=sampler, seed=seed
        ).seeded()
        sampling.check()
        picture = open_image(image)
        folder = LocalPath(tempfile.mkdtemp())
        paths = []
        for i in range(num_outputs):
            this = replace(sampling, seed=sampling.seed + i)
            path = folder / f"{i + 1}.png"
            edited, verdict = self.editor.edit(picture, prompt, this), None
            if not disable_safety_checker:
                (edited,), (verdict,) = self.checker.check([edited])
                if verdict.blurred:
                    print(f"safety: blurred {path.name!r}: score {verdict.score:.3f}, over {BLUR_OVER}")
            save_image(edited, path, {**asdict(this), "edit": prompt, **in_settings(verdict)})
            paths.append(Path(path))
        return paths


DECLARED = inspect.signature(Predictor.predict).parameters  # kept, as Cog's server replaces the defaults


def check_inputs(given: dict[str, Any]) -> None:
    """Hold inputs against what `predict` declares, as Cog does only where it built the container.

    Raises:
        UserError: one is out of its range, too long, or none of its choices.
    """
    for name, value in given.items():
        field = DECLARED[name].default
        if value is None and type(None) in get_args(DECLARED[name].annotation):
            continue
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise UserError(f"{name}: expected true or false, got {value!r}")
        if field.ge is not None and not (isinstance(value, int | float) and field.ge <= value <= field.le):
            raise UserError(f"{name}: expected {field.ge} to {field.le}, got {value!r}")
        if field.choices is not None and value not in field.choices:
            raise UserError(f"{name}: expected one of {', '.join(field.choices)}, got {value!r}")
        if field.max_length is not None and not (isinstance(value, str) and len(value) <= field.max_length):
            got = f"{len(value)} characters" if isinstance(value, str) else repr(value)
            raise UserError(f"{name}: expected at most {field.max_length} characters, got {got}")
