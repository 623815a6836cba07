"""Files of the project and of the user: where the checkout is, and writing that leaves no half of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm.util import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name


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
