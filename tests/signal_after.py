"""Programs that get a signal at an exact point of their work, which no test has to catch from outside."""

from __future__ import annotations

import sys

LINE = "ldm.data.json_lines:JsonLines.append"  # a line is written to a file that a run goes on from
PROMPT = "dataset_creation.pairs.folder:PairFolder.write"  # the pairs of a prompt are written

CODE = """
import importlib, os, runpy, sys
_, place, calls, number = sys.argv[:4]
del sys.argv[:4]
module, _, path = place.partition(":")
*classes, name = path.split(".")
owner = importlib.import_module(module)
for part in classes:
    owner = getattr(owner, part)
work, left = getattr(owner, name), int(calls)

def counted(*args, **options):
    global left
    result = work(*args, **options)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), int(number))
    return result

setattr(owner, name, counted)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def signal_after(place: str, calls: int, number: int) -> tuple[str, ...]:
    """What stands before a program and its words; the program is sent the signal at the end of a call.

    Args:
        place: function or method, as ``module:Class.method``.
        calls: of that function, the last of which ends with the signal.
        number: of the signal.
    """
    return sys.executable, "-c", CODE, place, str(calls), str(int(number))
