"""What an evaluation says: metrics with intervals, the fate of every requested structure, inputs, versions and cost."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from discovery.evaluation.cost import Cost, gpu_name
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
        Whatever moves the result: tolerances, cut-offs, thresholds, energy scale; and the seed.
    seconds, gpu_seconds
        Stage → wall seconds, and those of them in which a GPU was held.
    distributions
        Title → name → values, for plots.
    corrections
        Role → id → name of the correction → eV/atom, of energies that contain corrections.
    n_relaxations, n_sun
        Relaxations that were tried; crystals that are stable, unique and novel. None where the protocol has none.
    n_samples
        Samples that were taken, if they are not the requested structures.
    """

    protocol: str
    metrics: tuple[Metric, ...]
    outcomes: Mapping[str, str]
    inputs: Mapping[str, CrystalSet]
    settings: Mapping[str, Any]
    seconds: Mapping[str, float]
    gpu_seconds: Mapping[str, float] = field(default_factory=dict)
    distributions: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    corrections: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    n_relaxations: int | None = None
    n_sun: int | None = None
    n_samples: int | None = None

    @property
    def protocol_hash(self) -> str:
        """SHA-256 of protocol and settings; results are comparable if this and the hashes of their references agree."""
        settings = {key: value for key, value in self.settings.items() if key != "seed"}
        text = json.dumps([self.protocol, settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def costs(self) -> tuple[Cost, ...]:
        """What one sample, one relaxation, and one stable, unique and novel crystal have cost."""
        everything = "all stages" if "sampling" in self.seconds else "all stages; sampling was not measured"
        total = (sum(self.seconds.values()), sum(self.gpu_seconds.values()))
        relaxation = (self.seconds.get("relaxation", 0.0), self.gpu_seconds.get("relaxation", 0.0))
        return (
            _cost("sample", self.n_samples or len(self.outcomes), total, everything),
            _cost("relaxation", self.n_relaxations, relaxation, "relaxations that failed included"),
            _cost("stable, unique and novel crystal", self.n_sun, total, everything),
        )

    @property
    def losses(self) -> Counter[str]:
        """Outcome → number of structures; adds up to the number requested."""
        return Counter(self.outcomes.values())

    def metric(self, name: str) -> Metric:
        """Return a metric by name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "format": RESULT_FORMAT,
            "protocol": self.protocol,
            "protocol_hash": self.protocol_hash,
            "requested": len(self.outcomes),
            "metrics": [asdict(metric) for metric in self.metrics],
            "outcome_counts": dict(self.losses.most_common()),
            "outcomes": dict(self.outcomes),
            "inputs": {
                role: {
                    "path": str(one.path),
                    "sha256": one.sha256,
                    "members": len(one.members),
                    "crystals": len(one.crystals),
                }
                for role, one in self.inputs.items()
            },
            "settings": dict(self.settings),
            "corrections": {role: dict(found) for role, found in self.corrections.items()},
            "seconds": dict(self.seconds),
            "gpu_seconds": {stage: self.gpu_seconds.get(stage, 0.0) for stage in self.seconds},
            "cost": [asdict(cost) for cost in self.costs],
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "gpu": gpu_name()},
            "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        }


def _cost(per: str, n: int | None, total: tuple[float, float], note: str) -> Cost:
    seconds, gpu_seconds = (amount / n if n else None for amount in total)
    return Cost(per, n, seconds, gpu_seconds, note)
