"""Waiting for what a busy machine takes its time over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
DEADLINE = 180.0  # seconds: only what never comes takes that long


def wait_until(condition: Callable[[], T], expected: str) -> T:
    """What `condition` gives as soon as that counts as true.

    Args:
        condition: asked again and again; it may fail by itself when there is nothing to wait for any more.
        expected: what is waited for, for the message when it does not come within `DEADLINE`.
    """
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {DEADLINE:.0f} s for {expected}"
        time.sleep(0.02)
    return found
