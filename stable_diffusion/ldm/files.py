"""Files: where those of the project are, reading those of strangers, writing that leaves no half."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ldm.untrusted import parse_json
from ldm.util import UserError, one_line

_LDM = Path(__file__).resolve().parent
_INSTALLED = _LDM.with_name("ip2p")  # beside `ldm` in a wheel; it holds what the checkout does, as it does
ROOT = _INSTALLED if _INSTALLED.is_dir() else _LDM.parents[1]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
LARGEST_JSON = 64 * 2**20  # bytes of a file
_FAR = 2**31 - 1  # a byte that no file has: what is locked on Windows nobody else can read


def require_file(path: Path) -> None:
    """Check that a path leads to a file, not to a folder, a pipe or a device, which can block for ever.

    Raises:
        UserError: it does not, or nobody here may look.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero character
        raise UserError(f"cannot read {path}: {one_line(error)}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "something that is no file"
        raise UserError(f"cannot read {path}: expected a file, got {kind}")


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading, without waiting for anybody.

    Raises:
        UserError: as `require_file`, or there is no permission.
    """
    require_file(path)
    try:
        return open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from error


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Return what a file of JSON holds. See `parse_json`.

    Raises:
        UserError: as `open_regular`, or the file has more than `largest` bytes or is no JSON.
    """
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UserError(f"cannot read {path}: expected JSON of at most {largest / 2**20:g} MB, got more")
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"cannot read {path}: it is no JSON ({one_line(error)})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of `path` when the context ends well.

    Raises:
        UserError: it cannot be written; `path` is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def lock(file: IO[bytes]) -> None:
    """Keep other processes from locking a file, until it is closed or this process ends, however.

    Raises:
        BlockingIOError: another one has locked it.
        OSError: its file system knows no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        position = file.tell()
        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
        finally:
            file.seek(position)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
