"""External programs: each calculation in a folder and a process group of its own, with a time limit, killed whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import psutil

from discovery.crystal import Crystal
from discovery.files import write_atomically
from discovery.processes import die_with_parent
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind
from oracles.relax import reject

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
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        try:
            process.wait(timeout=max_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _kill(process)
    return Outcome(process.returncode, time.perf_counter() - start, timed_out)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, its group and its descendants, also those in groups of their own."""
    descendants: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()


class RunConfig(Protocol):
    """What every oracle that runs an external program has among its settings."""

    @property
    def max_seconds(self) -> float:
        """Wall time after which a calculation is killed with all its processes, seconds."""
        ...

    @property
    def min_distance(self) -> float:
        """Closest approach of two atoms, as a fraction of the sum of their covalent radii."""
        ...


class ExternalOracle(ABC):
    """An oracle whose calculations run in processes of their own.

    Every calculation has a folder named after the hash of its crystal and settings, with ``input.json``, ``log.txt``,
    the program's own files, and at last ``result.json``. A folder that already has its result is not computed again.

    Parameters
    ----------
    config
        Time limit and closest approach.
    energy_scale
        Scale of the energies.
    supported
        Atomic numbers that there are potentials for.
    """

    worker: ClassVar[str]
    """Module that computes the folder named by its only argument: reads ``input.json``, writes ``result.json``."""

    def __init__(self, config: RunConfig, energy_scale: EnergyScale, supported: Collection[int]) -> None:
        self._run_config = config
        self._supported = supported
        self.energy_scale = energy_scale

    @abstractmethod
    def _input(self, crystal: Crystal) -> dict[str, Any]:
        """Return all that a result depends on, as JSON values."""

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:
        """Return one evaluation per crystal, in order.

        Calculations are subfolders of `folder`. Without one they go to a temporary place, where only failed ones stay.
        """
        return [self._evaluate(crystal, folder) for crystal in crystals]

    def _evaluate(self, crystal: Crystal, parent: Path | None) -> Evaluation:
        failure = reject(crystal, self._supported, self._run_config.min_distance)
        if failure is not None:
            return Evaluation(self.energy_scale, failure=failure)
        text = json.dumps(self._input(crystal), sort_keys=True)
        if parent is None:
            folder = Path(tempfile.mkdtemp(prefix=f"{self.energy_scale.code}-"))
        else:
            folder = parent / f"{crystal.formula}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            folder.mkdir(parents=True, exist_ok=True)
        result = folder / "result.json"
        if result.exists():
            evaluation = _read(result)
        else:
            write_atomically(folder / "input.json", text)
            outcome = run(
                [sys.executable, "-m", self.worker, str(folder.resolve())],
                folder=folder,
                log="log.txt",
                max_seconds=self._run_config.max_seconds,
                environment=SINGLE_THREAD,
            )
            evaluation = _read(result) if result.exists() else self._killed(outcome, folder)
        if evaluation.failure is not None:
            return replace(evaluation, failure=_locate(evaluation.failure, folder))
        if parent is None:
            shutil.rmtree(folder)
        return evaluation

    def _killed(self, outcome: Outcome, folder: Path) -> Evaluation:
        """Return the failure of a calculation that ended without a result."""
        if outcome.timed_out:
            kind = FailureKind.TIMEOUT
            message = f"killed after max_seconds={self._run_config.max_seconds:g} s; raise it to go on"
        elif outcome.returncode == -signal.SIGKILL:
            kind = FailureKind.OUT_OF_MEMORY
            message = "killed by the system, which it does when memory runs out; run fewer calculations at once"
        elif outcome.returncode < 0:
            kind = FailureKind.CRASHED
            message = f"ended by {signal.Signals(-outcome.returncode).name}"
        else:
            kind = FailureKind.CRASHED
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            message = lines[-1] if lines else f"ended with code {outcome.returncode} and an empty log"
        return Evaluation(self.energy_scale, seconds=outcome.seconds, failure=Failure(kind, message))


def _read(result: Path) -> Evaluation:
    return Evaluation.from_dict(json.loads(result.read_text(encoding="utf-8")))


def _locate(failure: Failure, folder: Path) -> Failure:
    """Return `failure` with the folder it left and the command that shows more."""
    message = f"{failure.message}; look into {folder}"
    return replace(failure, message=message, folder=str(folder))
