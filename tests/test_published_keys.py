"""The two published configurations build models whose weights have the published names and shapes."""

import pytest
import torch
from omegaconf import OmegaConf

from golden import published_keys
from ldm.files import ROOT
from ldm.util import instantiate_from_config

# What published files hold and no model here has.
IGNORABLE = {
    # 0 … 76, the positions of the text's tokens: computed where they are used.
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
}


@pytest.mark.parametrize(
    ("config", "published"),
    [
        ("configs/generate.yaml", "instruct_pix2pix"),
        ("stable_diffusion/configs/stable-diffusion/v1-inference.yaml", "stable_diffusion_v1"),
    ],
)
def test_state_dict_has_the_published_keys(config: str, published: str) -> None:
    with torch.device("meta"):  # names and shapes, no numbers
        model = instantiate_from_config(OmegaConf.load(ROOT / config).model)
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = published_keys(published)
    assert ours.keys() <= theirs.keys()
    assert theirs.keys() - ours.keys() == IGNORABLE
    assert ours == {name: shape for name, shape in theirs.items() if name not in IGNORABLE}


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        model = instantiate_from_config(OmegaConf.load(ROOT / "configs/generate.yaml").model)
    for part, count in (
        (model.model.diffusion_model, 859_532_484),
        (model.first_stage_model, 83_653_863),
        (model.cond_stage_model, 123_060_480),
    ):
        assert sum(p.numel() for p in part.parameters()) == count
