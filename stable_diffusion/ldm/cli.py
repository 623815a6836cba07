"""The command `ip2p`: its first word names a program, which runs as a script with the words that follow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version

from ldm.commands import COMMANDS, STARTED_AS
from ldm.files import ROOT
from ldm.util import UserError, run_main

USAGE = """usage: ip2p COMMAND [options]

Edit pictures by written instructions, and train, make and measure what does so (InstructPix2Pix).

commands:
{commands}

ip2p COMMAND --help lists the options of one; ip2p --version tells the version.
"""


def main() -> None:
    run_main(_main)


def _main() -> None:
    word, *words = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        rows = (f"  {command:9} {about}" for command, (_, about) in COMMANDS.items())
        print(USAGE.format(commands="\n".join(rows)), end="")
    elif word == "--version":
        print("ip2p", version("instruct-pix2pix"))
    elif word not in COMMANDS:
        raise UserError(f"expected one of the commands {', '.join(COMMANDS)}, got {word!r}")
    else:
        start(word, words)


def start(word: str, words: list[str]) -> None:
    """Become the program of a command, with the packages beside it before all others of these names."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, STARTED_AS: f"ip2p {word}"}
    command = [sys.executable, str(ROOT / COMMANDS[word][0]), *words]
    if os.name != "nt":
        os.execve(sys.executable, command, environment)
    # There a new program would leave the console to the shell at once.
    process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the program that answers Ctrl-C
    sys.exit(process.wait())
