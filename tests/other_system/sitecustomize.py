"""Makes a Python lack what Linux has; Python imports this file when it starts with its folder on PYTHONPATH.

Windows lacks all of it, macOS some. `sys.platform` and `os.name` stay, by which packages choose their part
for this system; so modules and /proc are hidden from the project's own files alone.
"""

import asyncio  # noqa: F401  # first: on Linux it asks for os.sysconf, on others it has no need to
import builtins
import multiprocessing
import os
import platform
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

with suppress(ImportError):
    import psutil  # noqa: F401  while there still is what its part for Linux is made of

ROOT = str(Path(__file__).resolve().parents[2])
HIDDEN_MODULES = {"fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
HIDDEN_NAMES = {
    os: "fork forkpty getuid geteuid getgid getpgid killpg mkfifo nice setsid sysconf sysconf_names "
    "sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate statvfs",
    signal: "SIGALRM SIGHUP SIGKILL SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 SIGWINCH alarm pause setitimer sigwait",
}


def is_ours(file: str) -> bool:
    return file.startswith(ROOT) and "site-packages" not in file


def import_what_all_have(name: str, globals: Any = None, *args: Any, **more: Any) -> Any:
    if name in HIDDEN_MODULES and is_ours((globals or {}).get("__file__") or ""):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return import_any(name, globals, *args, **more)


def hide_proc(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or not str(args[0]).startswith("/proc/"):
        return
    frame: FrameType | None = sys._getframe(1)
    # pathlib.py, or from Python 3.13 on pathlib/_local.py
    while frame and "pathlib" in Path(frame.f_code.co_filename).with_suffix("").parts:
        frame = frame.f_back
    if frame and is_ours(frame.f_code.co_filename):
        raise FileNotFoundError(f"No such file: {args[0]}")


import_any = builtins.__import__
builtins.__import__ = import_what_all_have
sys.addaudithook(hide_proc)
for module, names in HIDDEN_NAMES.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
multiprocessing.set_start_method("spawn", force=True)
signals = {signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGINT, signal.SIGSEGV, signal.SIGTERM}
signal.valid_signals = lambda: signals
platform.system = lambda: "Windows"  # Lightning asks this before it names signals
if hasattr(os, "process_cpu_count"):  # of Python 3.13 on; where there is no sched_getaffinity it is this
    os.process_cpu_count = os.cpu_count
os.environ.setdefault("USERNAME", "reader")  # as Windows does; getpass asks for it before `os.getuid`
