"""Processes that do not outlive the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies, also by SIGKILL; other systems have no such call.

    For the first moments of a new process; `parent` is the id of the process that starts it and may be dead already.
    """
    set_parent_death_signal = 1
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of fresh interpreters, which are killed when this process dies.

    On Linux also when the thread ends that submits the first work.
    """
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=die_with_parent, initargs=(os.getpid(),)
    )
