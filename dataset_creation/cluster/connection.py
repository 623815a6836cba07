"""A connection to a Ray cluster, with what goes wrong said in one line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ldm.util import UserError, one_line

LOCAL = "local"  # as an address: a cluster on this machine for this run alone


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to the cluster at that address for the time of the context, and give the module `ray`.

    Args:
        address: host:port, ``auto`` for the cluster that runs on this machine, or `LOCAL`.

    Raises:
        UserError: Ray is not installed, or no cluster is there; or, out of the context, one that a task
            raised.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
    # One error ends the run; Ray would print those of the other tasks, with tracebacks.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs `pip install ray`: {error}") from error
    _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises almost any type
        raise UserError(f"--ray: expected a running cluster at {address!r}: {one_line(error)}") from error
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Knock at the port, for Ray itself takes minutes to find that nobody is there."""
    if address in ("auto", LOCAL) or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"--ray: expected a running cluster at {address!r}, as host:port: {error}") from None
