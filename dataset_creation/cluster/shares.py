"""The options by which a job array shares out work, the same in both generators."""

from __future__ import annotations

import argparse

from ldm.util import UserError


def add_share_options(group: argparse._ArgumentGroup, *names: str, what: str) -> None:
    """How many shares there are, under these names, and which of them this run takes."""
    for name, default, text in (
        (names, 1, f"shares of {what}, for job arrays"),
        (("--partition",), 0, "which share, counted from 0"),
    ):
        group.add_argument(
            *name, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )


def check_share_options(count: int, share: int, noun: str) -> None:
    """Raise `UserError` for a share that is none of so many."""
    if not 0 <= share < count:
        raise UserError(f"--partition: expected 0 to {count - 1} of {count} {noun}, got {share}")
