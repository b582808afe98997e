"""What an evaluation says: metrics with intervals, the fate of every requested structure, inputs, versions and cost."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from discovery.sets import CrystalSet, Member

RESULT_FORMAT = "discovery.evaluation_result/1"
N_RESAMPLES = 1000
CONFIDENCE_Z = 1.959964
"""Standard deviations of a normal distribution that hold 95 %."""

LIBRARIES = ("pymatgen", "numpy", "scipy", "ase", "torch")


@dataclass(frozen=True)
class Metric:
    """One figure.

    Parameters
    ----------
    name
        Name of the protocol.
    value
        None where it is undefined, such as a mean of nothing.
    interval
        95 %: Wilson's for rates, bootstrap over structures otherwise; None if there is none.
    n
        Denominator of a rate, number of values of a mean.
    note
        What the reader has to know.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    n: int
    note: str = ""


def unusable(member: Member) -> str:
    """Return the outcome of a member without a crystal, or with one without atoms."""
    return f"unusable: {member.problem or 'no atoms'}"


def rate(name: str, hits: int, n: int, note: str = "") -> Metric:
    """Return a share of `n` with Wilson's interval (J. Am. Stat. Assoc. 22, 209, 1927)."""
    if n == 0:
        return Metric(name, None, None, 0, note)
    share, z = hits / n, CONFIDENCE_Z
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Metric(name, share, (max(0.0, centre - half), min(1.0, centre + half)), n, note)


def statistic(
    name: str,
    values: Sequence[float] | np.ndarray,
    of: Callable[[np.ndarray], Any] = np.mean,
    *,
    seed: int = 0,
    note: str = "",
) -> Metric:
    """Return a statistic of `values` (rows are structures) with its bootstrap interval, 1000 resamples."""
    data = np.asarray(values)
    if not len(data):
        return Metric(name, None, None, 0, note)
    rng = np.random.default_rng(seed)
    resampled = [float(of(data[rng.integers(len(data), size=len(data))])) for _ in range(N_RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Metric(name, float(of(data)), (float(low), float(high)), len(data), note)


@dataclass(frozen=True)
class Result:
    """The outcome of one protocol.

    Parameters
    ----------
    protocol
        Name and version, such as ``P1 proxy``.
    metrics
        All figures.
    outcomes
        Id → what became of each requested structure; nothing is left out.
    inputs
        Role → set that was read.
    settings
        Whatever moves the result: tolerances, cut-offs, thresholds, hashes.
    seconds
        Stage → wall seconds.
    distributions
        Title → name → values, for plots.
    """

    protocol: str
    metrics: tuple[Metric, ...]
    outcomes: Mapping[str, str]
    inputs: Mapping[str, CrystalSet]
    settings: Mapping[str, Any]
    seconds: Mapping[str, float]
    distributions: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def losses(self) -> Counter[str]:
        """Outcome → number of structures; adds up to the number requested."""
        return Counter(self.outcomes.values())

    def metric(self, name: str) -> Metric:
        """Return a metric by name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        total = sum(self.seconds.values())
        return {
            "format": RESULT_FORMAT,
            "protocol": self.protocol,
            "requested": len(self.outcomes),
            "metrics": [asdict(metric) for metric in self.metrics],
            "outcome_counts": dict(self.losses.most_common()),
            "outcomes": dict(self.outcomes),
            "inputs": {
                role: {"path": str(one.path), "sha256": one.sha256, "members": len(one.members)}
                for role, one in self.inputs.items()
            },
            "settings": dict(self.settings),
            "seconds": dict(self.seconds),
            "seconds_per_structure": total / len(self.outcomes) if self.outcomes else None,
            "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        }
