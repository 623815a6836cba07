"""Every program that loads a model takes a diffusers folder, or its name on the hub, in place of a file."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

import edit_app
import edit_cli
import main as trainer_program
from app_server import edit_app as running_app
from benchmark_files import emu_rows, write
from damaged_folders import DAMAGE, VAE
from dataset_creation import cache_latents, generate_img_dataset
from format_models import Model, assert_same
from ldm.weights.converting import convert_weights
from ldm.weights.names import EMA_SETTINGS, ema_name
from metrics import compute_benchmark, compute_metrics
from pair_runs import content, write_models, write_prompts
from small_model import sample_picture
from tiny_training import write_dataset
from training_runs import call, saved

AVATARS = Path(__file__).parent / "data" / "avatars_held_out"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
SIDE = 64


class Files:
    """What the programs read.

    Attributes:
        models: the edit model and its text-to-image twin, each with two copies of the UNet.
        folders: the same in diffusers' format.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = {kind: Model(root / kind, kind) for kind in ("edit", "text")}
        self.folders = {kind: root / f"{kind}_folder" for kind in self.models}
        for kind, model in self.models.items():
            convert_weights(model.config, model.ckpt, self.folders[kind], keep="both")
            snapshot = root / f"hub/models--owner--{kind}/snapshots" / ("c" * 40)
            snapshot.parent.mkdir(parents=True)
            snapshot.symlink_to(self.folders[kind])
            (snapshot.parents[1] / "refs").mkdir()
            (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
        write_models(root)  # CLIP is what matters
        write_prompts(root / "prompts.jsonl")
        write_dataset(root / "dataset", count=4)
        write(root / "emu.parquet", emu_rows()[:1])
        sample_picture().save(root / "input.png")
        OmegaConf.save(self._training(), root / "training.yaml")

    def _training(self) -> Any:
        """One step that changes next to nothing, from the edit model."""
        config = OmegaConf.load(self.models["edit"].config)
        config.model.base_learning_rate = 1e-12
        sizes = {"min_resize_res": SIDE, "max_resize_res": SIDE, "crop_res": SIDE}
        params = {"path": str(self.root / "dataset"), "splits": [0.5, 0.5, 0.0], **sizes}
        sets = {
            name: {"target": "edit_dataset.EditDataset", "params": {**params, "split": split}}
            for name, split in (("train", "train"), ("validation", "val"))
        }
        config.data = {"target": "main.DataModuleFromConfig"}
        config.data.params = {"batch_size": 2, "num_workers": 0, **sets}
        config.lightning = {"trainer": {"max_steps": 1, "log_every_n_steps": 1}}
        return config

    def clip(self) -> list[Any]:
        return ["--clip-model", self.root / "clip.json", "--clip-weights", self.root / "clip.safetensors"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    root = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:  # the hub cannot be reached, but has been
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
        yield Files(root)


# --- the programs ---


@dataclass(frozen=True)
class Program:
    """A program that loads a model.

    Attributes:
        main: where it starts.
        words: its command line for given weights and a folder that it may write.
        result: what it has made in that folder.
        kind: of its model.
    """

    main: Callable[[], None]
    words: Callable[[Files, Any, Path], list[Any]]
    result: Callable[[Path], Any]
    kind: str = "edit"

    def run(self, files: Files, weights: Any, out: Path) -> int:
        words = self.words(files, weights, out)
        if self.main is not trainer_program.main:
            words += ["--config", files.models[self.kind].config, "--ckpt", weights, "--device", "cpu"]
        return call(self.main, *words)


def edit_words(files: Files, weights: Any, out: Path) -> list[Any]:
    picture = ["--input", files.root / "input.png", "--output", out / "edit.png"]
    return [*picture, "--edit", "add a hat", "--steps", 2, "--seed", 0]


def training_words(files: Files, weights: Any, out: Path) -> list[Any]:
    run = ["-b", files.root / "training.yaml", "--train", "-n", "x", "-l", out / "logs"]
    return [*run, f"model.params.ckpt_path={weights}"]


def metrics_words(files: Files, weights: Any, out: Path) -> list[Any]:
    samples = ["--dataset", AVATARS, "--split", "train", "--num-samples", 1, "--output_path", out / "curve"]
    return [*samples, *files.clip(), "--steps", 1, "--scales-image", 1.5]


def sdedit_words(files: Files, weights: Any, out: Path) -> list[Any]:
    return [*metrics_words(files, weights, out), "--method", "sdedit", "--strengths", 0.5]


def benchmark_words(files: Files, weights: Any, out: Path) -> list[Any]:
    data = ["emu-edit", "--dataset", files.root / "emu.parquet", "--output", out / "scores"]
    return [*data, *files.clip(), "--dino-weights", "none", "--steps", 1]


def cache_words(files: Files, weights: Any, out: Path) -> list[Any]:
    if not (out / "dataset").exists():
        shutil.copytree(files.root / "dataset", out / "dataset")
    return [out / "dataset"]


def pair_words(files: Files, weights: Any, out: Path) -> list[Any]:
    sizes = ["--steps", 2, "--n-samples", 1, "--resolution", SIDE, "--vae-ckpt", "none"]
    limits = [word for name in ("", "-dir", "-img") for word in (f"--clip{name}-threshold", 0)]
    return [out / "pairs", files.root / "prompts.jsonl", *sizes, *limits]


def rows_of(out: Path) -> Any:
    (file,) = (out / "curve").glob("*.samples.jsonl")
    return file.read_text().splitlines()[1:]


PROGRAMS = {
    "edit_cli": Program(
        edit_cli.main, edit_words, lambda out: np.array(Image.open(out / "edit.png")).tobytes()
    ),
    "main": Program(
        trainer_program.main,
        training_words,
        lambda out: saved(out / "logs/training_x/checkpoints/last.ckpt")["state_dict"],
    ),
    "compute_metrics": Program(compute_metrics.main, metrics_words, rows_of),
    "compute_metrics sdedit": Program(compute_metrics.main, sdedit_words, rows_of, "text"),
    "compute_benchmark": Program(
        compute_benchmark.main,
        benchmark_words,
        lambda out: json.loads((out / "scores/results.json").read_text())["sets"],
    ),
    "cache_latents": Program(
        cache_latents.main,
        cache_words,
        lambda out: {file.name: file.read_bytes() for file in (out / "dataset/latents").iterdir()},
    ),
    "generate_img_dataset": Program(
        generate_img_dataset.main, pair_words, lambda out: content(out / "pairs"), "text"
    ),
}
# The page is served until it is told to end, so its result is another test's.
LOADERS = {**PROGRAMS, "edit_app": Program(edit_app.main, lambda files, weights, out: [], lambda out: None)}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_folder_gives_what_its_file_gives(files: Files, tmp_path: Path, name: str) -> None:
    program = PROGRAMS[name]
    sources = {
        "file": files.models[program.kind].ckpt,
        "folder": files.folders[program.kind],
        "hub": f"owner/{program.kind}",
    }
    for source, weights in sources.items():
        (tmp_path / source).mkdir()
        assert program.run(files, weights, tmp_path / source) == 0, source
    expected = program.result(tmp_path / "file")
    assert expected
    for source in ("folder", "hub"):
        result = program.result(tmp_path / source)
        if name == "main":
            assert_same(result, expected)
        else:
            assert result == expected, source


@pytest.mark.slow
def test_the_app_serves_a_folder(files: Files, tmp_path: Path) -> None:
    words = ("--config", files.models["edit"].config, "--ckpt", files.folders["edit"])
    with running_app(tmp_path, *map(str, words)) as app:
        assert app.url.startswith("http://")


@pytest.mark.slow
def test_training_starts_from_a_text_to_image_folder(files: Files, tmp_path: Path) -> None:
    """Its first convolution is widened by zeros, and its autoencoder replaced by that of another folder."""
    other = shutil.copytree(files.folders["edit"] / "vae", tmp_path / "vae")
    state = load_file(files.folders["edit"] / VAE)
    save_file({name: 2 * tensor for name, tensor in state.items()}, tmp_path / VAE)
    words = [
        *training_words(files, files.folders["text"], tmp_path),
        f"model.params.first_stage_config.params.ckpt_path={other}",
    ]
    assert call(trainer_program.main, *words) == 0
    trained, text = PROGRAMS["main"].result(tmp_path), files.models["text"].state
    expected = {
        name: 2 * tensor if name.startswith("first_stage_model.") else tensor
        for name, tensor in text.items()
        if name in trained and name not in EMA_SETTINGS
    }
    for name, tensor in text.items():
        if ema_name(name) in text:  # the step has moved the average by the 124th of its updates
            expected[ema_name(name)] = text[ema_name(name)].lerp(tensor, 9 / (10 + 124))
    for name in (FIRST, ema_name(FIRST)):
        assert expected[name].shape[1] == 4 and trained[name].shape[1] == 8
        assert trained[name][:, 4:].abs().max() < 1e-9
        trained[name] = trained[name][:, :4]
    assert trained.keys() - EMA_SETTINGS == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, msg=name)


# --- mistakes ---


@pytest.fixture(scope="module")
def damaged(files: Files) -> dict[tuple[str, str], Path]:
    """A folder for each damage, of either kind of model; what is not damaged in it is linked."""
    found = {}
    for kind, folder in files.folders.items():
        for damage, (change, _) in DAMAGE.items():
            found[kind, damage] = files.root / "damaged" / kind / damage.replace(" ", "_")
            shutil.copytree(folder, found[kind, damage], copy_function=os.link)
            change(found[kind, damage])
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `edit_app.main` sets for its process is set back."""
    handler = signal.getsignal(signal.SIGTERM)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    yield
    signal.signal(signal.SIGTERM, handler)


def one_error(errors: str) -> str:
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in errors
    return line


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("settled")
def test_a_damaged_folder_is_one_line(
    files: Files,
    damaged: dict[tuple[str, str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    damage: str,
) -> None:
    program, folder = LOADERS[name], damaged[LOADERS[name].kind, damage]
    assert program.run(files, folder, tmp_path) == 2
    assert DAMAGE[damage][1].replace("{}", str(folder)) in one_error(capfd.readouterr().err)
    written = {path.name for path in tmp_path.rglob("*")} - {path.name for path in files.root.rglob("*")}
    assert written <= {"pairs", "settings.json"}  # the note of what pairs are to be made by


@pytest.mark.parametrize("name", sorted(LOADERS.keys() - {"cache_latents", "main"}))
@pytest.mark.usefixtures("settled")
def test_another_kind_of_model_is_one_line(
    files: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    other = {"edit": "text", "text": "edit"}[LOADERS[name].kind]
    assert LOADERS[name].run(files, files.folders[other], tmp_path) == 2
    said = one_error(capfd.readouterr().err)
    assert "input channels), but the configuration is for" in said and str(files.folders[other]) in said


def test_parts_alone(files: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The folder of an autoencoder is good for that alone, and that of another part for nothing."""
    edit, folder = PROGRAMS["edit_cli"], files.folders["edit"]
    assert edit.run(files, folder / "vae", tmp_path) == 2
    assert "missing (it is an autoencoder, for --vae-ckpt)" in one_error(capfd.readouterr().err)
    assert edit.run(files, folder / "unet", tmp_path) == 2
    assert one_error(capfd.readouterr().err).endswith("/unet/config.json: it describes no vae")
    words = training_words(files, folder, tmp_path)
    place = "model.params.first_stage_config.params.ckpt_path"
    assert call(trainer_program.main, *words, f"{place}={folder / 'text_encoder'}") == 2
    assert one_error(capfd.readouterr().err).endswith("/text_encoder/config.json: it describes no vae")
    assert not list(tmp_path.iterdir())
