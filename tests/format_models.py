"""Small models of both kinds with two copies of the UNet, for conversions to other formats."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from golden import fill, small_config
from ldm.util import instantiate_from_config
from ldm.weights.converting import convert_weights
from ldm.weights.names import SCHEDULE, ema_name
from networks import text_config
from weights_files import State

UNET = "unet/diffusion_pytorch_model.safetensors"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def configuration(kind: str) -> DictConfig:
    """The small edit model or its text-to-image twin; one level of the UNet has no attention, one of the
    autoencoder's has."""
    config = small_config() if kind == "edit" else text_config()
    config.params.use_ema = True
    config.params.unet_config.params.attention_resolutions = [1, 2]
    config.params.first_stage_config.params.ddconfig.attn_resolutions = [32]
    return OmegaConf.create({"model": config})


class Model:
    """A configuration and a checkpoint of it as a training leaves it: two copies of the UNet.

    Attributes:
        config, ckpt: the files.
        state: the weights, by published name.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir()
        self.config, self.ckpt = folder / "model.yaml", folder / "model.ckpt"
        config = configuration(kind)
        OmegaConf.save(config, self.config)
        network = fill(instantiate_from_config(config.model))
        self.state: State = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for name in self.state:
            if name.startswith("model_ema.diffusion_model"):
                self.state[name] = 0.9 * self.state[name]
        self.state["model_ema.num_updates"] = torch.tensor(123, dtype=torch.int32)
        self.state[POSITIONS] = torch.arange(77)[None]
        torch.save({"state_dict": self.state}, self.ckpt)

    def inference(self, averaged: bool = True) -> State:
        """What one copy of the UNet and all else is, by published name."""
        state = {n: t for n, t in self.state.items() if not n.startswith("model_ema.") and n != POSITIONS}
        if averaged:
            state |= {n: self.state[ema_name(n)] for n in state if n.startswith("model.")}
        return state

    def folder(self, path: Path, dtype: torch.dtype = torch.float32) -> Path:
        convert_weights(self.config, self.ckpt, path, dtype=dtype)
        return path


def assert_same(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def without_schedule(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in SCHEDULE}
