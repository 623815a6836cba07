"""Building objects from configuration, and turning users' mistakes into one clear line."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ldm.commands import as_typed
from ldm.untrusted import printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")
_LONGEST_REASON = 400  # characters of a library's message
# Packages that not every installation has, and the extra of pyproject.toml that brings each.
EXTRAS = {
    **dict.fromkeys(("pytorch_lightning", "tensorboard", "datasets", "pyarrow"), "train"),
    **dict.fromkeys(("openai", "better_profanity"), "dataset"),
    **dict.fromkeys(("open_clip", "matplotlib", "timm", "torchvision"), "metrics"),
    **dict.fromkeys(("gradio", "gradio_client"), "app"),
    **dict.fromkeys(("diffusers", "accelerate"), "benchmark"),
}

# What published configs name, and where it is; a wheel has no modules of these names.
PUBLISHED = {
    "main.DataModuleFromConfig": "ldm.training.data.DataModuleFromConfig",
    "main.ImageLogger": "ldm.training.callbacks.ImageLogger",
    "edit_dataset.EditDataset": "ldm.data.edit_dataset.EditDataset",
    "edit_dataset.EditDatasetEval": "ldm.data.edit_dataset.EditDatasetEval",
}


class UserError(ValueError):
    """A mistake of the user's: programs print the message in one line and exit with code 2."""


def get_obj_from_str(target: str) -> Any:
    """Return the object that a dotted path such as ``ldm.models.autoencoder.AutoencoderKL`` names.

    Raises:
        UserError: the module or the name in it does not exist.
    """
    words = target.split(".") if isinstance(target, str) else []
    if len(words) < 2 or not all(word.isidentifier() for word in words):
        raise UserError(f"config target: expected 'package.module.Name', got {target!r}")
    module_name, _, name = PUBLISHED.get(target, target).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(f"config target {target!r}: there is no module {error.name!r}") from error
        raise  # the module exists, but something that it imports does not
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise UserError(f"config target {target!r}: {module_name} has no {name!r}") from error


def read_config(config: DictConfig | Mapping[str, Any] | str | Path) -> Any:
    """Return a configuration, or what its YAML file holds, with all references resolved.

    Raises:
        UserError: the file cannot be read or is no YAML.
    """
    source = f" {config}" if isinstance(config, str | Path) else ""
    from omegaconf import OmegaConf  # late: most mistakes on a command line are told without it
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        content: Any = OmegaConf.load(config) if isinstance(config, str | Path) else config
        return OmegaConf.create(OmegaConf.to_container(OmegaConf.create(content), resolve=True))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read configuration{source}: {one_line(error)}") from error


def instantiate_from_config(config: Mapping[str, Any]) -> Any:
    """Build the object of a ``{target: dotted.path, params: {...}}`` mapping.

    Raises:
        UserError: no ``target``, a target that does not resolve, or a parameter that it does not know.
    """
    if not isinstance(config, Mapping) or "target" not in config:
        raise UserError(f"config: expected a mapping with 'target' and 'params', got {config!r}")
    factory = get_obj_from_str(config["target"])
    params = config.get("params") or {}
    if not isinstance(params, Mapping):
        raise UserError(f"config of {config['target']}: expected params by name, got {params!r}")
    reject_unknown(config["target"], factory, params)
    return factory(**params)


def reject_unknown(target: str, factory: Callable[..., Any], params: Mapping[str, Any]) -> None:
    """Raise `UserError` when `params` names something that `factory` does not take, or misses a must."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some classes written in C have no signature to look at
        return
    accepted = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in accepted):
        return
    unknown = sorted(set(params) - {p.name for p in accepted})
    if unknown:
        raise UserError(f"config of {target}: unknown parameter {', '.join(unknown)}")
    missing = [p.name for p in accepted if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    missing = [name for name in missing if name not in params]
    if missing:
        raise UserError(f"config of {target}: parameter {', '.join(missing)} is missing")


def read_block(content: Any, source: str | Path, name: str, start: T) -> T:
    """A dataclass with what the block `name` of a configuration says in place of its values.

    Args:
        content: of `read_config`.
        source: its file, for messages.
        start: the dataclass, as it is without the block.

    Raises:
        UserError: the block is no mapping, or has an unknown name or a value of another type.
    """
    from omegaconf import OmegaConf  # late, as above
    from omegaconf.errors import OmegaConfBaseException

    block = content.get(name) or {} if isinstance(content, Mapping) else {}
    if not isinstance(block, Mapping):
        raise UserError(f"{source}: {name}: expected names with values, got {block!r}")
    try:
        made: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(start), block))
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {name}.{error.full_key}: {str(error).splitlines()[0]}") from error
    return made


def one_line(error: BaseException) -> str:
    """What went wrong, in one line; of a file that cannot be used, in the system's words.

    Messages of libraries may quote what strangers wrote, at any length.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(" ".join(str(error).split()), _LONGEST_REASON) or type(error).__name__


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In which settings two runs differ, such as "seed 0, now 1"."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def run_main(main: Callable[[], None]) -> None:
    """Run a program: a `UserError` becomes ``error: …`` on stderr and exit code 2, Ctrl-C exit code 130.

    So does the lack of a package of an extra. What the terminal's encoding lacks is printed escaped.
    """
    # Threads of OpenMP wait for each other in a busy loop. On a machine with other work the one that they
    # wait for is then kept from its core: an edit by two threads took three times as long as by one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, which is later
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        print(printable(as_typed(f"error: {error}")), file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        command = as_typed(f"pip install -e '.[{EXTRAS[package]}]'")
        print(f"error: expected {package}: {command}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
