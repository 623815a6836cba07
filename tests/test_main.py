"""main.py's command line: overrides, merged configs, mistakes, and what it prints."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import main as trainer_program
from ldm.files import ROOT
from ldm.training.config import learning_rate, read_config
from training_runs import Project, call, saved


def test_overrides_stand_anywhere(project: Project) -> None:
    words = ["model.base_learning_rate=3e-4", "-n", "words", "data.params.batch_size=2", "-l", project.logs]
    words += ["-b", project.config("cached"), "lightning.trainer.max_steps=1", "-t", "-s", "7"]
    assert call(trainer_program.main, *words) == 0
    checkpoint = saved(project.last("cached_words"))
    assert checkpoint["global_step"] == 1
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(3e-4)
    (file,) = (project.logs / "cached_words" / "configs").glob("*.yaml")
    used = OmegaConf.load(file)
    assert (used.model.base_learning_rate, used.data.params.batch_size) == (3e-4, 2)


@pytest.mark.slow
def test_weights_and_biases(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files come to the run folder; ``csv`` is what the tests of exact trainings read."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ("lightning.logger.target=wandb", "lightning.logger.params.offline=true", "--max_steps", "1")
    assert project.train("cached", *words, run="wandb") == 0
    (run,) = (project.logs / "cached_wandb" / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


def test_files_merge_from_left_to_right(project: Project, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("model: {base_learning_rate: 0.5}\ndata: {params: {batch_size: 3}}\n")
    config = read_config(
        [str(project.config("edit")), str(tmp_path / "more.yaml")], ["data.params.batch_size=5"]
    )
    assert config.model.base_learning_rate == 0.5 and config.data.params.batch_size == 5
    assert config.model.target.endswith("ddpm_edit.LatentDiffusion")


def test_scaled_learning_rate() -> None:
    config = OmegaConf.create(
        {
            "model": {"base_learning_rate": 1e-4},
            "data": {"params": {"batch_size": 32}},
            "lightning": {"trainer": {"accumulate_grad_batches": 4}},
        }
    )
    assert learning_rate(config, devices=8, scale=False) == pytest.approx(1e-4)
    assert learning_rate(config, devices=8, scale=True) == pytest.approx(1e-4 * 8 * 32 * 4)


def test_published_command_lines_parse() -> None:
    parse = trainer_program.parse_args
    args = parse("--name default --base configs/train.yaml --train --gpus 0,1,2,3,4,5,6,7".split())
    assert (args.name, args.base, args.train, args.seed) == ("default", ["configs/train.yaml"], True, 23)
    assert (args.gpus, args.scale_lr, args.no_test, args.debug) == ("0,1,2,3,4,5,6,7", False, False, False)
    assert (args.logdir, args.resume, args.project, args.postfix) == ("logs", "", "", "")
    args = parse("-b a.yaml b.yaml -t false -r logs/x -f _1 -p p -d -s 3 --scale_lr a.b=1 --no-test".split())
    assert (args.base, args.train, args.overrides) == (["a.yaml", "b.yaml"], False, ["a.b=1"])
    assert (args.debug, args.scale_lr, args.no_test, args.postfix) == (True, True, True, "_1")


@pytest.mark.slow
def test_debug_runs_one_batch_and_the_test_set(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.load(project.config("cached"))
    config.data.params.test = {**config.data.params.validation, "params": {"path": str(project.dataset)}}
    project.write("debug", config)
    assert project.train("debug", "--debug") == 0
    assert "test/loss_simple_ema" in capsys.readouterr().out
    assert not project.last("debug_test").exists()


def mistakes(logs: Path, config: Path, files: Path) -> dict[str, tuple[list[object], str]]:
    """Command lines, each with what its error says; `files` is where `write_bad_files` has been."""
    base = ["--train", "-l", logs, "-n", "wrong", "-b", config]
    unet = "model.params.unet_config.params"
    page = files / "run" / "checkpoints" / "page.ckpt"
    return {
        "no config": (["--train"], "expected --base with a config"),
        "no such config": (["-b", "nowhere.yaml"], "expected a YAML file, 'nowhere.yaml' is not there"),
        "broken config": (["-b", files / "broken.yaml"], "config: cannot read"),
        "empty config": (["-b", files / "empty.yaml"], "expected the sections model and data"),
        "override of a leaf": ([*base, "model.target.x=1"], "expected 'package.module.Name', got {'x': 1}"),
        "unknown model parameter": ([*base, "model.params.depth=3"], "unknown parameter depth"),
        "unknown network parameter": ([*base, f"{unet}.depth=3"], "unknown parameter depth"),
        "wrong network parameter": ([*base, f"{unet}.model_channels=33"], "a multiple of 32, got 33"),
        "unknown target": ([*base, "model.target=ldm.models.Nothing"], "ldm.models has no 'Nothing'"),
        "unknown trainer option": ([*base, "lightning.trainer.max_step=3"], "unknown parameter max_step"),
        "learning rate": (
            [*base, "model.base_learning_rate=fast"],
            "expected model.base_learning_rate above 0",
        ),
        "no dataset": (
            [*base, "data.params.train.params.path=nowhere"],
            "expected nowhere/seeds.json",
        ),
        "wrong split": ([*base, "data.params.train.params.split=dev"], "expected one of train, val, test"),
        "no autoencoder": (
            [*base, "model.params.first_stage_config.params.ckpt_path=none.ckpt"],
            "there is no file none.ckpt",
        ),
        "no such GPU": ([*base, "--gpus", "99,"], "--gpus: expected numbers below"),
        "GPU of no number": ([*base, "--gpus", "all"], "--gpus: expected numbers as in 0,1,2 or a count"),
        "too many GPUs": ([*base, "--gpus", "99"], "--gpus: expected at most"),
        "unknown section": ([*base, "training.steps=3"], "the top level knows model, data"),
        "unknown model key": ([*base, "model.parms.x=3"], "section model knows base_learning_rate"),
        "unknown strategy": ([*base, "--strategy", "magic"], "lightning.trainer: "),
        "unknown precision": ([*base, "--precision", "9"], "lightning.trainer: "),
        "unknown logger": ([*base, "lightning.logger=paper"], "expected 'package.module.Name', got 'paper'"),
        "unknown checkpoint option": (
            [*base, "lightning.modelcheckpoint.params.every=3"],
            "config of lightning.modelcheckpoint: unknown parameter every",
        ),
        "resume of nothing": (["-r", "nowhere", "-t"], "--resume: expected a run folder or a checkpoint"),
        "resume of weights": (
            [*base, "-r", files / "bare.ckpt"],
            "bare.ckpt holds no training to go on with",
        ),
        "resume of a web page": ([*base, "-r", page], "got a web page (HTML)"),
    }


NAMES = tuple(mistakes(Path("logs"), Path("config.yaml"), Path("folder")))


def write_bad_files(folder: Path) -> None:
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "page.ckpt").write_text("<html>")
    (folder / "broken.yaml").write_text("model: [1, 2\n")
    (folder / "empty.yaml").write_text("lightning: {}\n")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "bare.ckpt")


@pytest.mark.parametrize("mistake", NAMES)
def test_mistakes_are_one_line(
    project: Project, tmp_path: Path, mistake: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_bad_files(tmp_path)
    words, message = mistakes(project.logs, project.config("cached"), tmp_path)[mistake]
    assert call(trainer_program.main, *words) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not project.last("cached_wrong").exists()


def test_a_run_does_not_execute_its_checkpoint(project: Project, tmp_path: Path, capfd: Any) -> None:
    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    checkpoint = project.last("cached_malice")
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "optimizer_states": [], "x": Malice()}, checkpoint)
    assert project.train("cached", run="malice") == 2
    assert "last.ckpt" in capfd.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_as_a_program(project: Project) -> None:
    """A mistake and a training from a shell: exit codes, no traceback, no words but the run's own."""
    command = [sys.executable, ROOT / "main.py", "-l", project.logs, "--train", "-b"]
    options = {"capture_output": True, "text": True, "cwd": project.folder}
    wrong = subprocess.run(command, **options)
    assert wrong.returncode == 2
    expected = "error: expected --base with a config, for example --base configs/train.yaml\n"
    assert wrong.stderr == expected
    command[1] = ROOT / "stable_diffusion" / "main.py"  # where an older document has it
    right = subprocess.run([*command, project.config("cached"), "-n", "shell"], **options)
    assert right.returncode == 0, right.stderr
    assert project.last("cached_shell").is_file()
    assert "Epoch" in right.stdout and "train/loss_simple" in right.stdout
    assert not any(word in right.stderr for word in ("Tip", "litlogger", "Warning", "deprecated", "v_num"))
