"""Trainings run by `main.py` in this process, in a folder that holds all they need."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

import main as trainer_program
from dataset_creation import cache_latents
from ldm.util import run_main
from tiny_training import autoencoder_config, edit_config, write_dataset

TESTS = Path(__file__).parent
STEPS = 4  # of a training that no override makes longer


class SignalAt(pl.Callback):
    """Sends this process a signal in the batch after a number of steps.

    Args:
        step: optimizer steps done before.
        name: of the signal, such as SIGINT (Ctrl-C).
    """

    def __init__(self, step: int, name: str) -> None:
        self.step = step
        self.number = signal.Signals[name]

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def signal_at(step: int, name: str) -> tuple[str, ...]:
    """Overrides that put `SignalAt` into a training."""
    callback = "lightning.callbacks.signal"
    return (
        f"{callback}.target=training_runs.SignalAt",
        f"{callback}.params.step={step}",
        f"{callback}.params.name={name}",
    )


class Project:
    """A folder with a dataset, a trained autoencoder, configs of edit trainings, and their runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = write_dataset(folder / "dataset", count=8)
        self.logs = folder / "logs"
        self.autoencoder = self.last("autoencoder_test")
        self.write("autoencoder", autoencoder_config(self.dataset, steps=6))
        self.write("edit", edit_config(self.dataset, self.autoencoder, STEPS))
        self.write("cached", edit_config(self.dataset, self.autoencoder, STEPS, cached=True))

    def write(self, name: str, config: Any) -> None:
        OmegaConf.save(config, self.config(name))

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def last(self, run: str) -> Path:
        return self.logs / run / "checkpoints" / "last.ckpt"

    def prepare(self) -> None:
        """Train the autoencoder and cache its latents."""
        options = {"--config": self.config("edit"), "--ckpt": self.autoencoder, "--batch-size": 5}
        assert self.train("autoencoder") == 0
        assert call(cache_latents.main, self.dataset, *chain(*options.items())) == 0

    def train(self, name: str, *words: object, run: str = "test") -> int:
        """Train by a command line like ``--base edit.yaml --train``; return the exit code."""
        return call(
            trainer_program.main, "-n", run, "-l", self.logs, "-b", self.config(name), "--train", *words
        )


def program(*words: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``main.py`` as a shell would, one thread a process; `launcher` stands before it, like torchrun."""
    path = os.pathsep.join((str(TESTS), str(TESTS.parent)))  # for callbacks that tests define
    return subprocess.run(
        [sys.executable, *launcher, str(TESTS.parent / "main.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def loss_curve(run: Path) -> dict[int, float]:
    """Training loss of each step by all the CSV files of a run; of a step trained twice, the later one."""
    curve = {}
    for file in sorted((run / "metrics").glob("version_*/metrics.csv")):
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                if row["train/loss_simple"]:
                    curve[int(row["step"])] = float(row["train/loss_simple"])
    return curve


def call(main: Callable[[], None], *words: object) -> int:
    """Run a program in this process as its command line would; return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, words)])
        try:
            run_main(main)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def saved(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)
