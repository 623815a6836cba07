"""Training: read arguments, merge YAML files, build model, data and trainer, fit.

    python main.py --name default --base configs/train.yaml --train --gpus 0,1,2,3,4,5,6,7

The run lives in ``logs/{config}_{name}``; the same command again goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import pickle
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.training.callbacks import ImageLogger  # noqa: F401  configs name main.ImageLogger
from ldm.training.data import DataModuleFromConfig  # noqa: F401  configs name main.DataModuleFromConfig
from ldm.util import UserError, instantiate_from_config, reject_unknown, run_main

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
BAR_REFRESH = 20  # batches; a log file gets every state of the bar


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; ``nested.key=value`` words, wherever they stand, are kept as `overrides`."""
    argv = sys.argv[1:] if argv is None else argv
    overrides = [word for word in argv if OVERRIDE.match(word)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-n", "--name", default="", help="name of the run")
    add("-b", "--base", nargs="*", default=[], metavar="YAML", help="config files, merged from left to right")
    add("-r", "--resume", default="", help="run folder or checkpoint to go on from")
    add("-t", "--train", nargs="?", const=True, default=False, type=_boolean, help="train (default: false)")
    add("--no-test", nargs="?", const=True, default=False, type=_boolean, help="no test after training")
    add(
        "-d",
        "--debug",
        nargs="?",
        const=True,
        default=False,
        type=_boolean,
        help="run one batch of each kind",
    )
    add("-s", "--seed", type=int, default=23, help="seed of everything random (default: %(default)s)")
    add("-p", "--project", default="", help="name of the project folder under the log folder")
    add("-f", "--postfix", default="", help="added to the run's name")
    add("-l", "--logdir", default="logs", help="where runs are kept (default: %(default)s)")
    add("--scale_lr", nargs="?", const=True, default=False, type=_boolean,
        help="learning rate = base rate x GPUs x batch size x accumulated batches")  # fmt: skip
    add("--gpus", default=None, help="GPUs by number, as in 0,1,2 (default: none, train on the CPU)")
    args = parser.parse_args([word for word in argv if not OVERRIDE.match(word)])
    args.overrides = overrides
    return args


def _boolean(text: str) -> bool:
    words = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    words |= {"no": False, "false": False, "f": False, "n": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return words[text.lower()]


def read_config(files: list[str], overrides: list[str]) -> DictConfig:
    """Merge the files from left to right, then ``nested.key=value`` overrides.

    Raises:
        UserError: a file is missing or no YAML, an override does not fit, or a section is missing.
    """
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise UserError(f"config: expected a YAML file, {missing[0]!r} is not there")
    try:
        config = OmegaConf.merge(*(OmegaConf.load(file) for file in files), OmegaConf.from_dotlist(overrides))
        sections = [OmegaConf.select(config, name) for name in ("model", "data")]
        OmegaConf.to_container(config, resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"config: cannot read {', '.join(files)}: {' '.join(str(error).split())}") from error
    if not all(isinstance(section, DictConfig) for section in sections):
        raise UserError(f"config: expected the sections model and data in {', '.join(files) or 'a file'}")
    return config


def run_folder(args: argparse.Namespace) -> Path:
    """Folder of the run: ``{logdir}/{project}/{config}_{name}{postfix}``, or the one that is resumed."""
    if args.resume:
        path = Path(args.resume)
        if not path.exists():
            raise UserError(f"--resume: expected a run folder or a checkpoint, {path} is not there")
        return path.absolute().parents[1] if path.is_file() else path
    if not args.base:
        raise UserError("expected --base with a config, for example --base configs/train.yaml")
    config_name = Path(args.base[0]).stem
    return Path(args.logdir, args.project, f"{config_name}_{args.name}{args.postfix}")


def checkpoint_to_resume(args: argparse.Namespace, folder: Path) -> Path | None:
    """The checkpoint that was asked for, else the last one of the run, else None.

    Raises:
        UserError: it is damaged, or holds weights but no training to go on with.
    """
    import torch

    from ldm.weights_file import open_weights

    given = Path(args.resume)
    path = given if args.resume and given.is_file() else folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return None
    open_weights(path)
    try:
        saved = torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        saved = {}
    if "optimizer_states" not in saved:
        raise UserError(
            f"{path} holds no training to go on with; to start a new one from its weights: "
            f"model.params.ckpt_path={path}"
        )
    return path


def learning_rate(config: DictConfig, devices: int, scale: bool) -> float:
    """Base rate of the config, times the global batch size when `scale` is set."""
    rate = OmegaConf.select(config, "model.base_learning_rate")
    if not isinstance(rate, int | float) or rate <= 0:
        raise UserError(f"config: expected model.base_learning_rate above 0, got {rate!r}")
    if not scale:
        return float(rate)
    accumulated = OmegaConf.select(config, "lightning.trainer.accumulate_grad_batches", default=1)
    return float(rate) * devices * config.data.params.batch_size * accumulated


def accelerator(gpus: str | None) -> dict[str, Any]:
    """Lightning's options for ``--gpus``; without it the CPU."""
    if not gpus:
        return {"accelerator": "cpu"}
    import torch

    words = [word.strip() for word in gpus.strip(", ").split(",")]
    there = torch.cuda.device_count()
    if not all(word.isdecimal() and int(word) < there for word in words):
        raise UserError(f"--gpus: expected numbers below {there}, the GPUs of this machine, got {gpus!r}")
    return {"accelerator": "gpu", "devices": [int(word) for word in words]}


def build_trainer(config: DictConfig, folder: Path, args: argparse.Namespace, monitor: str | None) -> Any:
    """The Lightning trainer with its callbacks and its logger."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ModelSummary
    from pytorch_lightning.loggers import TensorBoardLogger

    from ldm.training.callbacks import ProgressBar, SaveLast

    options = OmegaConf.to_container(OmegaConf.select(config, "lightning.trainer") or OmegaConf.create())
    options.setdefault("fast_dev_run", args.debug)
    options |= accelerator(args.gpus)
    reject_unknown("lightning.trainer", pl.Trainer, options)
    every = OmegaConf.select(config, "lightning.modelcheckpoint.params.every_n_train_steps", default=1000)
    place = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    callbacks: list[pl.Callback] = [
        LearningRateMonitor(logging_interval="step"),
        ModelSummary(max_depth=2),
        ProgressBar(refresh_rate=BAR_REFRESH),
    ]
    if not options["fast_dev_run"]:
        callbacks += [
            ModelCheckpoint(
                every_n_train_steps=every, save_top_k=1, filename="{step:08}", save_last=True, **place
            ),
            SaveLast(folder / "checkpoints" / "last.ckpt"),
        ]
        if monitor:
            callbacks.append(ModelCheckpoint(monitor=monitor, filename="best", **place))
    named = OmegaConf.select(config, "lightning.callbacks") or {}
    callbacks += [instantiate_from_config(callback) for callback in named.values()]
    logger = TensorBoardLogger(str(folder), name=None, version="metrics")
    return pl.Trainer(**options, default_root_dir=folder, callbacks=callbacks, logger=logger)


def silence_lightning() -> None:
    """Drop what Lightning says that has nothing to do with a training: advertising, its own deprecations."""
    noise = ("Tip:", "TPU available", "Skipping setting a default `ModelSummary`")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not any(words in record.getMessage() for words in noise)
    )
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message=r".*does not have many workers")  # a choice of the config
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # the frozen ones
    # On a resume: the folder is not empty, and the rest of the epoch is drawn anew from shuffled data.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"You're resuming from a checkpoint that ended")


def main() -> None:
    args = parse_args()
    folder = run_folder(args)
    files = args.base or sorted(str(f) for f in (folder / "configs").glob("*.yaml"))[-1:]
    config = read_config(files, args.overrides)

    import pytorch_lightning as pl

    from ldm.training.module import training_module

    silence_lightning()
    pl.seed_everything(args.seed, workers=True)
    data = instantiate_from_config(config.data)
    data.setup()  # a wrong dataset is found before the model is built
    resume = None if args.debug else checkpoint_to_resume(args, folder)
    network = instantiate_from_config(config.model)
    trainer = build_trainer(config, folder, args, network.monitor)
    module = training_module(network, learning_rate(config, trainer.num_devices, args.scale_lr))

    (folder / "configs").mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    OmegaConf.save(config, folder / "configs" / f"{now}-project.yaml")
    if args.train:
        try:
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        except SystemExit:  # how Lightning answers Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
    if not args.no_test and "test" in data.datasets:
        trainer.test(module, data, ckpt_path=None if args.train else resume, weights_only=True)


if __name__ == "__main__":
    run_main(main)
