"""Files of the project and of the user: where the former are, and writing that leaves no half of a file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ldm.util import UserError

_LDM = Path(__file__).resolve().parent
_INSTALLED = _LDM.with_name("ip2p")  # beside `ldm` in a wheel; it holds what the checkout does, as it does
ROOT = _INSTALLED if _INSTALLED.is_dir() else _LDM.parents[1]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
_FAR = 2**31 - 1  # a byte that no file has: what is locked on Windows nobody else can read


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
