"""What InstructPix2Pix adds to latent diffusion (Brooks et al. 2022, section 3.2).

The UNet also sees the latent of the picture to edit, and training drops text, picture or both from some
examples, so that sampling can be guided by each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion import ddpm
from ldm.sampling.guidance import EditDenoiser
from ldm.sampling.noise import ExampleNoise

DROPOUT = 0.05  # share of examples for each of: text dropped, both dropped, picture dropped


def dropout_masks(uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Which examples lose their text and which their picture, two boolean [B].

    Args:
        uniform: one random number in [0, 1) for each example, [B].
    """
    return uniform < 2 * DROPOUT, (uniform >= DROPOUT) & (uniform < 3 * DROPOUT)


class LatentDiffusion(ddpm.LatentDiffusion):
    """The edit model. A batch holds ``edited`` and ``edit`` = ``{c_concat: picture, c_crossattn: text}``.

    Pictures are [B, 3, H, W] in [-1, 1], or posterior parameters [B, 8, h, w] of the autoencoder; texts may
    be their conditioning [B, L, D], with the texts themselves under ``instruction``.
    """

    _kept_empty_text: Tensor | None = None

    def get_input(
        self, batch: Mapping[str, Any], noise: ExampleNoise | None = None, uniform: Tensor | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Scaled latents of the edited pictures and conditioning with dropout.

        Args:
            noise: what is drawn; by default by `ExampleNoise.of_batch`.
            uniform: random numbers [B] that decide the dropout; drawn when None.
        """
        noise = noise or ExampleNoise.of_batch(batch, self.first_stage_key)
        x = self.get_first_stage_encoding(self.posterior(batch[self.first_stage_key]), noise)
        edit = batch[self.cond_stage_key]
        uniform = noise.uniform() if uniform is None else uniform
        text_dropped, image_dropped = dropout_masks(uniform)
        # The image latent is the mode, and unlike the target it is not scaled.
        image = self.posterior(edit["c_concat"]).mode()
        image = image.masked_fill(image_dropped.to(x.device)[:, None, None, None], 0.0)
        text = self.encode_text(edit["c_crossattn"], text_dropped)  # [B, L, D]
        return x, {"c_concat": [image], "c_crossattn": [text]}

    def encode_text(self, given: Sequence[str] | Tensor, dropped: Tensor) -> Tensor:
        """Conditioning [B, L, D] of B instructions, that of the empty one where `dropped` [B] says so.

        Args:
            given: the texts, or their conditioning computed before, [B, L, D].
        """
        if isinstance(given, Tensor):
            empty = self._empty_text().to(given)  # [1, L, D]
            return torch.where(dropped.to(given.device)[:, None, None], empty, given)
        texts = ["" if drop else text for drop, text in zip(dropped.tolist(), given, strict=True)]
        return self.get_learned_conditioning(texts)

    def _empty_text(self) -> Tensor:
        """Conditioning of the empty text, [1, L, D]; computed once where the text encoder is not trained."""
        if self._kept_empty_text is None or self.cond_stage_model not in self.frozen:
            self._kept_empty_text = self.get_learned_conditioning([""])
        return self._kept_empty_text

    @torch.no_grad()
    def log_images(
        self, batch: Mapping[str, Any], n: int, cfg_text: float = 7.5, cfg_image: float = 1.5
    ) -> dict[str, Tensor | list[str]]:
        """Before, instruction, after and sample: n texts, and pictures [n, 3, H, W] in [-1, 1].

        The sample is drawn at those guidance scales.
        """
        edit = batch[self.cond_stage_key]
        image = self.posterior(edit["c_concat"][:n]).mode()
        truth = self.get_first_stage_encoding(self.posterior(batch[self.first_stage_key][:n]))
        given = edit["c_crossattn"][:n]
        text = self.encode_text(given, torch.zeros(len(given), dtype=torch.bool))
        with self.ema_scope():
            null_text = self.get_learned_conditioning([""])
            denoiser = EditDenoiser(self.unet, self.sigmas, text, image, null_text, cfg_text, cfg_image)
            return {
                "before": self.first_stage_model.decode(image),
                "instruction": list(edit.get("instruction", given)[:n]),
                "after": self.decode_first_stage(truth),
                "sample": self.sample_latent(denoiser, truth),
            }
