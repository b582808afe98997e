"""Generators against each other at equal budget: the same compositions, samples, oracle and hull for all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.crystal import Crystal
from discovery.evaluation import stability
from discovery.evaluation.results import Metric, Result
from discovery.protocols import Generator, Oracle
from discovery.sets import CrystalSet, Member
from discovery.types import Target

COMPARED = (
    "relaxed",
    "unique_novel",
    "stable_0",
    "sun_0",
    "stable_0.1",
    "sun_0.1",
    "mean_e_above_hull",
    "seconds_per_sun",
)


@dataclass(frozen=True)
class Comparison:
    """Result of each generator, by name, on the same targets."""

    results: Mapping[str, Result]
    targets: Sequence[Target]
    seed: int

    def metric(self, name: str) -> dict[str, Metric]:
        """Return generator → metric."""
        return {generator: result.metric(name) for generator, result in self.results.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "targets": [target.to_dict() for target in self.targets],
            "seed": self.seed,
            "results": {name: result.to_dict() for name, result in self.results.items()},
        }


def compare(
    generators: Mapping[str, Generator],
    targets: Sequence[Target],
    hull_entries: CrystalSet,
    known: Mapping[str, Crystal],
    oracle: Oracle,
    *,
    oracle_seconds: float | None = None,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Comparison:
    """Sample the same targets with each generator and judge the samples by protocol P3.

    Every generator gets the same number of samples, each of which may be relaxed once by the same oracle.

    Parameters
    ----------
    generators
        Name → generator.
    targets
        Compositions, with the number of samples of each.
    hull_entries, known, oracle, progress
        As in :func:`discovery.evaluation.stability.evaluate`.
    oracle_seconds
        What the relaxations of one generator may cost together; samples that are not reached count as lost.
    seed
        Of the generators and of the bootstrap.
    """
    results = {}
    for name, generator in generators.items():
        start = time.perf_counter()
        samples = generator.sample(targets, seed=seed)
        seconds = time.perf_counter() - start
        members = tuple(
            Member(
                f"{number:05d}",
                sample.crystal,
                sample.crystal.composition.get_el_amt_dict() if sample.crystal is not None else None,
                problem=sample.failure.message if sample.failure is not None else None,
            )
            for number, sample in enumerate(samples)
        )
        content = "".join(member.crystal.content_hash if member.crystal is not None else "-" for member in members)
        generated = CrystalSet(Path(f"generator {name}"), hashlib.sha256(content.encode()).hexdigest(), members)
        results[name] = stability.evaluate(
            generated,
            hull_entries,
            known,
            oracle,
            seed=seed,
            sampling_seconds=seconds,
            oracle_seconds=oracle_seconds,
            progress=progress,
        )
    return Comparison(results, tuple(targets), seed)
