"""Run as a program by tests/test_process.py: what a process of ours finds around itself, as JSON; or no end."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from sparsecc.system.process import _IGNORED, THREADS_OF_BLAS


def facts() -> dict[str, object]:
    told: dict[str, object] = {
        "isolated": sys.flags.isolated,
        "folder": os.getcwd(),
        "TMPDIR": os.environ["TMPDIR"],
        "threads": {name: os.environ.get(name) for name in (*THREADS_OF_BLAS, *_IGNORED)},
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "file size": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
        "processor time": resource.getrlimit(resource.RLIMIT_CPU)[0],
        "life": signal.getitimer(signal.ITIMER_REAL)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
    }
    if sys.platform == "linux":
        libc, death = ctypes.CDLL(None), ctypes.c_int()
        libc.prctl(2, ctypes.byref(death))  # PR_GET_PDEATHSIG
        told |= {"dies with": death.value, "no new privileges": libc.prctl(39, 0, 0, 0, 0)}
    return told


if sys.argv[1:] == ["endless"]:
    Path("pid").write_text(str(os.getpid()))
    time.sleep(600)
elif __name__ == "__main__":
    print(json.dumps(facts()))
