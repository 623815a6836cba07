"""Training loss of the autoencoder.

A plain reconstruction term and a small KL term (Rombach et al. 2022, appendix G, without the perceptual and
adversarial parts): enough for flat drawings, and it needs no second network.
"""

from __future__ import annotations

from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class ReconstructionKL(nn.Module):
    """Mean absolute error plus `kl_weight` times the KL divergence per latent value."""

    def __init__(self, kl_weight: float = 1e-4) -> None:
        super().__init__()
        self.kl_weight = kl_weight

    def forward(
        self, x: Tensor, reconstruction: Tensor, posterior: DiagonalGaussianDistribution
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and its parts under the names they are logged with. Images [B, 3, H, W] in [-1, 1]."""
        error = reconstruction.float() - x
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        rec_loss = error.abs().mean()
        psnr = 10 * (4 / error.detach().square().mean()).log10()  # 4: squared width of [-1, 1]
        loss = rec_loss + self.kl_weight * kl
        return loss, {"rec_loss": rec_loss.detach(), "kl": kl.detach(), "psnr": psnr}
