"""Generators against each other at equal budget: the same compositions, samples, oracle and hull for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.errors import DiscoveryError
from discovery.evaluation import stability
from discovery.evaluation.cost import Clock
from discovery.evaluation.results import Metric, Result
from discovery.evaluation.stability import Budget
from discovery.matching import Matcher
from discovery.protocols import Generator, Oracle
from discovery.sets import CrystalSet, Member
from discovery.types import Sample, Target


@dataclass(frozen=True)
class Comparison:
    """Result of each generator, by name, on the same targets."""

    results: Mapping[str, Result]
    targets: Sequence[Target]
    seed: int

    @property
    def protocol_hash(self) -> str:
        """SHA-256 of the protocol, its settings and the targets, which are the same for all generators."""
        protocol = next(iter(self.results.values())).protocol_hash
        text = json.dumps([protocol, [target.to_dict() for target in self.targets]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def metric(self, name: str) -> dict[str, Metric]:
        """Return generator → metric, of those that have it."""
        return {
            generator: metric
            for generator, result in self.results.items()
            for metric in result.metrics
            if metric.name == name
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "protocol_hash": self.protocol_hash,
            "targets": [target.to_dict() for target in self.targets],
            "seed": self.seed,
            "results": {name: result.to_dict() for name, result in self.results.items()},
        }


def compare(
    generators: Mapping[str, Generator],
    targets: Sequence[Target],
    hull_entries: CrystalSet,
    known: CrystalSet,
    oracle: Oracle,
    *,
    matcher: Matcher | None = None,
    corrections: bool = False,
    budget: Budget | None = None,
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Sample the same targets with each generator and judge the samples by protocol P3.

    Every generator gets the same number of samples and the same budget of relaxations by the same oracle. The samples
    are relaxed in turn, one of each target before the second of any, so that a budget that ends early is spread evenly.

    Parameters
    ----------
    generators
        Name → generator.
    targets
        Compositions, with the number of samples of each.
    hull_entries, known, oracle, matcher, corrections
        As in :func:`discovery.evaluation.stability.evaluate`.
    budget
        Of each generator.
    seed
        Of the generators and of the bootstrap.
    progress
        Called with stage, which begins with the generator's name, and number of its steps done.
    """
    results = {}
    for name, generator in generators.items():
        clock = Clock()
        with clock.stage("sampling"):
            members = _members(generator, targets, seed)
        if progress is not None:
            progress(f"{name}: sampling", len(members))
        content = "".join(member.crystal.content_hash if member.crystal is not None else "-" for member in members)
        generated = CrystalSet(Path(f"generator {name}"), hashlib.sha256(content.encode()).hexdigest(), members)
        results[name] = stability.evaluate(
            generated,
            hull_entries,
            known,
            oracle,
            matcher=matcher,
            corrections=corrections,
            seed=seed,
            sampling=clock,
            budget=budget,
            progress=_named(progress, name),
        )
    return Comparison(results, tuple(targets), seed)


def _members(generator: Generator, targets: Sequence[Target], seed: int) -> tuple[Member, ...]:
    """Return one member for each requested sample, whatever the generator does; the first samples of all targets first.

    An error of the generator loses all its samples, and one sample that it leaves out loses that sample.
    """
    samples: list[Sample] = []
    problem = "the generator gave no sample"
    try:
        samples = generator.sample(targets, seed=seed)
    except DiscoveryError as error:
        problem = f"the generator failed: {error}"
    except Exception as error:  # a foreign generator must not end the comparison of the others
        problem = f"the generator failed: {type(error).__name__}: {error}"
    found: dict[tuple[int, int], Member] = {}
    for index, target in enumerate(targets):
        own = [sample for sample in samples if sample.target == index]
        for number in range(target.n_samples):
            id_ = f"{index}-{target.label}-{number:04d}"
            found[number, index] = (
                _member(id_, own[number], target) if number < len(own) else Member(id_, None, None, problem=problem)
            )
    return tuple(found[key] for key in sorted(found))


def _member(id_: str, sample: Sample, target: Target) -> Member:
    if sample.crystal is None:
        reason = sample.failure.message if sample.failure is not None else "the generator gave no crystal"
        return Member(id_, None, None, problem=reason)
    amounts = sample.crystal.composition.get_el_amt_dict()
    if target.composition is not None and amounts != dict(target.composition):
        return Member(id_, None, None, problem=f"the generator gave another composition than {target.label}")
    return Member(id_, sample.crystal, amounts)


def _named(progress: Callable[[str, int], None] | None, name: str) -> Callable[[str, int], None] | None:
    return None if progress is None else lambda stage, steps: progress(f"{name}: {stage}", steps)
