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
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.training.callbacks import ImageLogger  # noqa: F401  configs name main.ImageLogger
from ldm.training.config import check_model, learning_rate, read_config
from ldm.training.data import DataModuleFromConfig  # noqa: F401  configs name main.DataModuleFromConfig
from ldm.util import UserError, instantiate_from_config, keep_freed_memory, run_main

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


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
    add("--gpus", help="GPUs by number, as in 0,1,2, or how many of them (default: none, train on the CPU)")
    add("--num_nodes", type=int, help="machines (default: 1)")
    add("--precision", help="32-true, bf16-mixed, 16-mixed or another of Lightning's (default: 32-true)")
    add("--strategy", help="how processes work together, by Lightning's names (default: ddp for several)")
    add("--max_steps", type=int, help="optimizer steps after which the training ends (default: the config's)")
    args = parser.parse_args([word for word in argv if not OVERRIDE.match(word)])
    args.overrides = overrides
    return args


def _boolean(text: str) -> bool:
    words = {"yes": True, "true": True, "t": True, "y": True, "1": True}
    words |= {"no": False, "false": False, "f": False, "n": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return words[text.lower()]


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

    from ldm.training.saving import newest_checkpoint
    from ldm.weights_file import open_weights

    given = Path(args.resume)
    path = given if args.resume and given.is_file() else newest_checkpoint(folder / "checkpoints")
    if path is None:
        return None
    open_weights(path)
    try:
        saved = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError):
        saved = {}
    if "optimizer_states" not in saved:
        raise UserError(
            f"{path} holds no training to go on with; to start a new one from its weights: "
            f"model.params.ckpt_path={path}"
        )
    return path


def main() -> None:
    args = parse_args()
    folder = run_folder(args)
    files = args.base or sorted(str(f) for f in (folder / "configs").glob("*.yaml"))[-1:]
    config = read_config(files, args.overrides)

    import pytorch_lightning as pl

    from ldm.training.latent_cache import check_caches
    from ldm.training.module import load_start, training_module
    from ldm.training.trainer import build_trainer, devices, silence_lightning

    logging.basicConfig(format="%(levelname)s: %(message)s")
    silence_lightning()
    pl.seed_everything(args.seed, workers=True)
    # What can be wrong is looked at before the model, which takes time and memory, is built.
    resume = None if args.debug else checkpoint_to_resume(args, folder)
    check_model(config.model, files=resume is None)
    data = instantiate_from_config(config.data)
    data.seed = args.seed
    data.setup()
    options = {
        **devices(args.gpus),
        **{name: getattr(args, name) for name in ("num_nodes", "precision", "strategy", "max_steps")},
    }
    monitor = OmegaConf.select(config, "model.params.monitor")
    trainer = build_trainer(config, folder, options, monitor, debug=args.debug)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    rate = learning_rate(config, trainer.num_devices * trainer.num_nodes, args.scale_lr)

    network = instantiate_from_config(config.model)
    if resume is None:
        load_start(network)
        check_caches(data.datasets.values(), network)
    module = training_module(network, rate)
    if trainer.is_global_zero:
        save_config(config, folder)
    if args.train:
        fit(trainer, module, data, resume)
    if not args.no_test and "test" in data.datasets:
        trainer.test(module, data, ckpt_path=None if args.train else resume, weights_only=True)


def save_config(config: DictConfig, folder: Path) -> None:
    """Keep the merged config with the run, named by the time."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    OmegaConf.save(config, folder / "configs" / f"{now}-project.yaml")


def fit(trainer: Any, module: Any, data: Any, resume: Path | None) -> None:
    """Train, from a checkpoint if there is one; Ctrl-C becomes KeyboardInterrupt again."""
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # how Lightning answers Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except UserError as error:  # one out of a loader's process brings that one's traceback along
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("ldm.util.UserError: ")) from error


if __name__ == "__main__":
    run_main(main)
