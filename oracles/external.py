"""Runs an external program in a process group of its own, with a time limit, and never leaves a part of it behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """How an external program ended.

    Parameters
    ----------
    returncode
        As in ``subprocess``: negative for the signal that killed it.
    seconds
        Wall time.
    timed_out
        Whether it was killed because its time was over.
    """

    returncode: int
    seconds: float
    timed_out: bool


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, also by SIGKILL; other systems have no such call."""
    set_parent_death_signal = 1
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def run(
    command: Sequence[str],
    *,
    folder: Path,
    log: str,
    max_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run `command` in `folder` and wait for it; its whole process group is dead when this returns or raises.

    On Linux the program is killed too if this process dies without a chance to do so itself.

    Parameters
    ----------
    command
        Program and arguments.
    folder
        Working folder.
    log
        File in `folder` that standard output and standard error are appended to.
    max_seconds
        Wall time after which the group is killed.
    environment
        Variables beyond those of this process.
    """
    start = time.perf_counter()
    timed_out = False
    with (folder / log).open("ab") as output:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            process.wait(timeout=max_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(process.returncode, time.perf_counter() - start, timed_out)
