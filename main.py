"""Train the model that YAML files describe: the edit model, its autoencoder, or a text-to-image model.

    python main.py --name default --base configs/train.yaml --train --gpus 0,1,2,3,4,5,6,7
    python main.py --name mine --base configs/train.yaml --train model.params.ckpt_path=FOLDER

Words KEY=VALUE, wherever they stand, change the config, as data.params.batch_size=8 does. Weights to start
from may be a .ckpt or .safetensors file, a diffusers folder, or its name on the hub. The run lives in
LOGDIR/PROJECT/CONFIG_NAME; the same command again goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.arguments import Parser, config_file, whole_number
from ldm.util import (
    PUBLISHED,
    UserError,
    get_obj_from_str,
    instantiate_from_config,
    run_main,
)

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")


def __getattr__(name: str) -> Any:
    """What configs name main.DataModuleFromConfig and main.ImageLogger; Lightning takes seconds to import."""
    if f"main.{name}" not in PUBLISHED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return get_obj_from_str(f"main.{name}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; ``nested.key=value`` words, wherever they stand, are kept as `overrides`."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser.of(__doc__, usage="%(prog)s [-h] [options] [KEY=VALUE ...]")
    switch: dict[str, Any] = {
        "nargs": "?",
        "const": True,
        "default": False,
        "type": _boolean,
        "metavar": "BOOL",
    }

    add = parser.add_argument_group("run").add_argument
    add("-n", "--name", default="", help="name of the run (default: none)")
    text = "config files, merged from left to right (default: the config of the run that --resume names)"
    add("-b", "--base", nargs="*", default=[], type=config_file, metavar="YAML", help=text)
    text = "run folder or checkpoint to go on from (default: the last checkpoint of this run, if any)"
    add("-r", "--resume", default="", metavar="PATH", help=text)
    add("-l", "--logdir", default="logs", metavar="DIR", help="where runs are kept (default: %(default)s)")
    add("-p", "--project", default="", metavar="NAME", help="folder of the run in LOGDIR (default: none)")
    add("-f", "--postfix", default="", metavar="TEXT", help="added to the name of the run (default: none)")

    add = parser.add_argument_group("what is done").add_argument
    add("-t", "--train", **switch, help="train (default: false)")
    add("--no-test", **switch, help="no test after that, where the config has data for it (default: false)")
    add("-d", "--debug", **switch, help="run one batch of each kind and write no checkpoint (default: false)")

    add = parser.add_argument_group("computing").add_argument
    seeds = whole_number(0, 2**32 - 1)
    add("-s", "--seed", type=seeds, default=23, help="of everything random (default: %(default)s)")
    text = "optimizer steps of the training (default: the config's)"
    add("--max_steps", type=int, metavar="STEPS", help=text)
    text = "learning rate = base rate x GPUs x batch size x accumulated batches (default: false)"
    add("--scale_lr", **switch, help=text)
    add("--gpus", help="GPUs by number, as in 0,1,2, or how many of them (default: none, train on the CPU)")
    add("--num_nodes", type=int, metavar="N", help="machines that train together (default: 1)")
    text = "32-true, bf16-mixed, 16-mixed or another of Lightning's (default: the config's, else 32-true)"
    add("--precision", metavar="NAME", help=text)
    text = "how processes share the work, by Lightning's names (default: the config's, else ddp)"
    add("--strategy", metavar="NAME", help=text)

    args = parser.parse_args([word for word in argv if not OVERRIDE.match(word)])
    args.overrides = [word for word in argv if OVERRIDE.match(word)]
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


def main() -> None:
    args = parse_args()
    folder = run_folder(args)

    # Only now what takes seconds to import.
    import pytorch_lightning as pl

    from ldm.device import keep_freed_memory
    from ldm.training.config import check_model, learning_rate, read_config, save_config
    from ldm.training.latent_cache import check_caches
    from ldm.training.module import load_start, training_module
    from ldm.training.saving import checkpoint_to_resume
    from ldm.training.trainer import build_trainer, devices, fit, silence_lightning

    files = args.base or sorted(str(f) for f in (folder / "configs").glob("*.yaml"))[-1:]
    config = read_config(files, args.overrides)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    silence_lightning()
    pl.seed_everything(args.seed, workers=True)
    # What can be wrong is looked at before the model, which takes time and memory, is built.
    resume = None if args.debug else checkpoint_to_resume(Path(args.resume), folder)
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


if __name__ == "__main__":
    run_main(main)
