"""What a long run shows of itself on the terminal: a line of progress, and one of what it came to so far."""

from __future__ import annotations

import sys

from tqdm import tqdm

FORM = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} to go] {desc}"


class Progress:
    """A bar over `total` items; the second line is left out where a file takes the place of the terminal.

    Use as a context manager, which ends both lines.
    """

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self._bar = tqdm(
            total=total, disable=not shown, smoothing=0.05, dynamic_ncols=True, bar_format=FORM, leave=True
        )
        two = shown and sys.stderr.isatty()
        self._line = tqdm(bar_format="{desc}", disable=not two, dynamic_ncols=True, position=1)

    def skip(self) -> None:
        """Count an item that an earlier run did, which says nothing about the speed of this one."""
        if not self._bar.disable:
            self._bar.n += 1
            self._bar.initial += 1
            self._bar.last_print_n += 1

    def done(self, count: int, first: str, second: str) -> None:
        """Count items, and show a text behind the bar and one below it."""
        if self._line.disable and second:
            first = f"{first}; {second}"
        self._bar.set_description_str(first, refresh=False)
        self._line.set_description_str(second, refresh=False)
        if self._bar.update(count):
            self._line.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()  # shows the last state
        self._line.close()
