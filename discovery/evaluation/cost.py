"""What an evaluation costs: seconds, and seconds during which it held a GPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cost:
    """Seconds for one of something.

    Parameters
    ----------
    per
        What it is, such as ``sample``.
    n
        How many there are; None where the protocol has none.
    seconds, gpu_seconds
        Wall seconds, and those of them in which a GPU was held, for each; None if there are none.
    note
        What is counted.
    """

    per: str
    n: int | None
    seconds: float | None
    gpu_seconds: float | None
    note: str


@dataclass(frozen=True)
class Clock:
    """Measures stages, which may come several times.

    The seconds of a stage are GPU-seconds as well if PyTorch had memory on a GPU in it: a GPU that this process holds
    is not free for others. Programs outside the process are not seen.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    gpu_seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        _reset_peak()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start, on_gpu=_peak() > 0)

    def add(self, name: str, seconds: float, *, on_gpu: bool = False) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.gpu_seconds[name] = self.gpu_seconds.get(name, 0.0) + (seconds if on_gpu else 0.0)


def gpu_name() -> str | None:
    """Return the name of the GPU that PyTorch computes on; None if it has used none."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_initialized() else None


def _reset_peak() -> None:
    torch = sys.modules.get("torch")  # who has not imported it has used no GPU
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def _peak() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return max(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
