"""main.py run for real, on drawn pictures and networks of a few layers."""

import signal
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

import edit_cli
import main as trainer_program
from ldm.models.diffusion.ddpm_edit import LatentDiffusion
from ldm.pictures.writing import read_settings
from ldm.util import instantiate_from_config
from ldm.weights.loading import load_autoencoder, load_for_training, load_model
from ldm.weights.opening import read_state_dict
from training_runs import STEPS, Project, call, saved, signal_at


@pytest.fixture(scope="module")
def edit_run(project: Project) -> Path:
    """The last checkpoint of an edit training on pictures."""
    assert project.train("edit") == 0
    return project.last("edit_test")


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Names of what differs."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


# --- The autoencoder ----------------------------------------------------------------------------------------


def test_autoencoder_run(project: Project) -> None:
    """Checkpoints under published keys, the config that was used, pictures and metrics."""
    checkpoint = saved(project.autoencoder)
    assert checkpoint["global_step"] == 6
    model = instantiate_from_config(OmegaConf.load(project.config("autoencoder")).model)
    assert checkpoint["state_dict"].keys() == model.state_dict().keys()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    load_autoencoder(model, project.autoencoder)
    assert differences(fresh, model.state_dict()) == set(fresh), "every weight has moved"

    run = project.logs / "autoencoder_test"
    (config,) = (run / "configs").glob("*-project.yaml")
    assert OmegaConf.load(config) == OmegaConf.load(project.config("autoencoder"))
    with Image.open(run / "images" / "train" / "step-00000006.png") as grid:
        assert grid.size == (2 * 128, 2 * 128)  # truth and reconstruction of two pictures, enlarged
    assert list((run / "metrics").glob("events*"))


# --- The edit model -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_edit_run(project: Project, edit_run: Path) -> None:
    """UNet and text encoder learn, the autoencoder stays, and the average follows each step."""
    checkpoint = saved(edit_run)
    assert checkpoint["global_step"] == STEPS
    state = checkpoint["state_dict"]
    assert state["model_ema.num_updates"] == STEPS
    autoencoder = saved(project.autoencoder)["state_dict"]
    for name, value in autoencoder.items():
        assert torch.equal(state[f"first_stage_model.{name}"], value), name
    network = instantiate_from_config(OmegaConf.load(project.config("edit")).model)
    moved = differences(network.state_dict(), state)
    assert {"model.diffusion_model.out.2.weight", "model_ema.diffusion_modelout2weight"} <= moved
    assert any(name.startswith("cond_stage_model.") for name in moved)
    assert (edit_run.parent / "best.ckpt").is_file()
    with Image.open(project.logs / "edit_test" / "images" / "train" / f"step-{STEPS:08}.png") as grid:
        assert grid.size == (4 * 128, 2 * 128)  # before, instruction, after and sample of two examples


@pytest.mark.slow
def test_a_training_makes_a_model_that_edits(project: Project, edit_run: Path, tmp_path: Path) -> None:
    """Its file loads with the averaged weights, and edit_cli.py makes a picture with it."""
    model = load_model(project.config("edit"), edit_run)
    state = read_state_dict(edit_run)
    averaged = state["model_ema.diffusion_modelout2weight"]
    assert torch.equal(model.model.diffusion_model.out[2].weight, averaged)
    assert not torch.equal(averaged, state["model.diffusion_model.out.2.weight"])

    output = tmp_path / "edited.png"
    words = {
        "--config": project.config("edit"),
        "--ckpt": edit_run,
        "--input": project.dataset / "0000001" / "100_0.jpg",
        "--output": output,
        "--edit": "make it green",
        "--resolution": 64,
        "--steps": 2,
        "--seed": 3,
        "--device": "cpu",
    }
    assert call(edit_cli.main, *chain(*words.items())) == 0
    with Image.open(output) as picture:
        assert picture.size == (64, 64)
    assert read_settings(output)["ckpt"] == "last.ckpt"


@pytest.mark.slow
def test_the_same_command_goes_on(project: Project) -> None:
    assert project.train("edit", run="resumed") == 0
    first = saved(project.last("edit_resumed"))
    assert project.train("edit", f"lightning.trainer.max_steps={STEPS + 3}", run="resumed") == 0
    second = saved(project.last("edit_resumed"))
    assert (first["global_step"], second["global_step"]) == (STEPS, STEPS + 3)
    for checkpoint in (first, second):
        step = checkpoint["global_step"]
        assert checkpoint["state_dict"]["model_ema.num_updates"] == step
        assert checkpoint["optimizer_states"][0]["state"][0]["step"] == step
    files = {file.name for file in project.last("edit_resumed").parent.iterdir()}
    assert "last.ckpt" in files and not any("-v1" in name for name in files)

    # Nothing is left to do, so nothing changes.
    assert project.train("edit", f"lightning.trainer.max_steps={STEPS + 3}", run="resumed") == 0
    third = saved(project.last("edit_resumed"))
    assert not differences(second["state_dict"], third["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "checkpoint"])
def test_resuming_by_name(project: Project, edit_run: Path, what: str, tmp_path: Path) -> None:
    """``--resume`` takes a run's folder or one of its checkpoints, and needs no other config."""
    run = tmp_path / "moved"
    (run / "checkpoints").mkdir(parents=True)
    (run / "configs").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(edit_run.read_bytes())
    OmegaConf.save(OmegaConf.load(project.config("edit")), run / "configs" / "2020-project.yaml")
    given = run if what == "folder" else run / "checkpoints" / "last.ckpt"
    steps = f"lightning.trainer.max_steps={STEPS + 1}"
    assert call(trainer_program.main, "--resume", given, "-t", "true", steps) == 0
    assert saved(run / "checkpoints" / "last.ckpt")["global_step"] == STEPS + 1


@pytest.mark.slow
def test_interrupt_loses_nothing(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C between two checkpoints saves the step, exits with 130, and the same command goes on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        code = project.train("edit", *signal_at(1, "SIGINT"), run="stopped")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further Ctrl-C
    assert code == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert saved(project.last("edit_stopped"))["global_step"] == 2
    assert project.train("edit", run="stopped") == 0
    assert saved(project.last("edit_stopped"))["global_step"] == STEPS


@pytest.mark.slow
def test_training_ends_with_a_checkpoint(project: Project) -> None:
    """Also where the last step is not one that is saved."""
    every = "lightning.modelcheckpoint.params.every_n_train_steps=2"
    assert project.train("cached", every, "lightning.trainer.max_steps=3", run="odd") == 0
    assert saved(project.last("cached_odd"))["global_step"] == 3


@pytest.mark.slow
def test_validating_more_rarely_than_once_an_epoch(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    rarely = "lightning.trainer.val_check_interval=1000"
    assert project.train("cached", rarely, run="rarely") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: `val_check_interval` (1000)")
    assert message.endswith("lightning.trainer.check_val_every_n_epoch=null")
    assert (
        project.train("cached", rarely, "lightning.trainer.check_val_every_n_epoch=null", run="rarely") == 0
    )


def edit_loss(network: LatentDiffusion, config: Any) -> float:
    """Loss without dropout on the four training pairs, always at the same timesteps and noise."""
    dataset = instantiate_from_config(config.data.params.train)
    batch = torch.utils.data.default_collate([dataset[i] for i in range(4)])
    torch.manual_seed(0)
    losses = []
    for t in range(50, 1000, 100):
        with torch.no_grad():
            x, cond = network.get_input(batch, uniform=torch.ones(4))
            losses.append(network.p_losses(x, cond, torch.full((4,), t))[0])
    return torch.stack(losses).mean().item()


@pytest.mark.slow
def test_overfitting_four_pairs(project: Project) -> None:
    """Trained on the latent cache, the loss falls far below that of a network that predicts no noise."""
    config = OmegaConf.load(project.config("cached"))
    network = instantiate_from_config(config.model).eval()
    load_autoencoder(network.first_stage_model, project.autoencoder)
    assert edit_loss(network, config) == pytest.approx(1.0, abs=0.05)
    words = ("max_epochs=60", "max_steps=60", "check_val_every_n_epoch=1000")
    assert (
        project.train(
            "cached",
            *(f"lightning.trainer.{word}" for word in words),
            "lightning.callbacks.image_logger.params.batch_frequency=1000",
            "lightning.modelcheckpoint.params.every_n_train_steps=60",
            run="overfit",
        )
        == 0
    )
    load_for_training(network, project.last("cached_overfit"))
    assert edit_loss(network, config) < 0.55
