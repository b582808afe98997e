"""Where a campaign stands; read from its run folder, whether it runs, was killed or is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from discovery.hull import Phase
from discovery.matching import CrystalIndex, Matcher, spacegroup
from discovery.runfolder import RunFolder
from discovery.store import Store
from discovery.types import Budget, Verdict


@dataclass(frozen=True)
class DiscoveredPhase:
    """A phase that the campaign found, with its verdict on the newest reference hull."""

    phase: Phase
    verdict: Verdict
    spacegroup: str
    """Hermann–Mauguin symbol."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `discovery status --json` shows."""
        return {
            "id": self.phase.id,
            "formula": self.phase.formula,
            "spacegroup": self.spacegroup,
            "e_above_hull": self.verdict.e_above_hull,
            "decomposition_energy": self.verdict.decomposition_energy,
            "formation_energy_per_atom": self.verdict.formation_energy_per_atom,
            "energy_scale": self.verdict.energy_scale,
            "hull_version": self.verdict.hull_version,
        }


@dataclass(frozen=True)
class Status:
    """Where a campaign stands.

    Parameters
    ----------
    name, seed
        Of the campaign.
    state
        created, running, paused, interrupted, finished or failed; a campaign whose driver died is interrupted.
    message
        Why it finished or failed.
    round, rounds
        The newest round, counted from 0, and how many there will be.
    funnel
        State → number of candidates that ever reached it, and ``in_flight``.
        ``sampled == rejected + failed + passed_over + judged + in_flight``.
    failures
        Failure kind → number of evaluations.
    stable
        What was discovered and is stable on the newest reference hull, one phase per structure, without the elements.
    threshold
        e_above_hull in eV/atom up to which a phase is stable.
    energy_scales
        Role → id of its energy scale.
    budget
        What may be spent, is spent and is reserved.
    checkpoints
        Generator weights, oldest first.
    seconds
        Wall time of all drivers.
    """

    name: str
    seed: int
    state: str
    message: str
    round: int
    rounds: int
    funnel: Mapping[str, int]
    failures: Mapping[str, int]
    stable: tuple[DiscoveredPhase, ...]
    threshold: float
    energy_scales: Mapping[str, str]
    budget: Budget
    checkpoints: tuple[Mapping[str, Any], ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `discovery status --json` shows."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return own | {
            "funnel": dict(self.funnel),
            "stable": [phase.to_dict() for phase in self.stable],
            "budget": asdict(self.budget),
            "checkpoints": [dict(checkpoint) for checkpoint in self.checkpoints],
        }


def read_status(run_dir: Path) -> Status:
    """Read the status of the campaign in `run_dir`; writes nothing."""
    folder = RunFolder(run_dir)
    store = folder.read_store()
    try:
        return status_of(store, has_driver=folder.has_driver() or store.has_driver())
    finally:
        store.close()


def status_of(store: Store, *, has_driver: bool) -> Status:
    """Return the status of a campaign whose store is open; `has_driver` tells whether a driver is at work."""
    campaign = store.campaign()
    driven = campaign.state in ("running", "paused")
    search = campaign.config["campaign"]
    limits = {kind: amount for kind, amount in search["budget"].items() if amount is not None}
    return Status(
        name=campaign.name,
        seed=campaign.seed,
        state="interrupted" if driven and not has_driver else campaign.state,
        message=campaign.message,
        round=max((round for round, _ in store.steps()), default=0),
        rounds=search["rounds"],
        funnel=store.funnel(),
        failures=store.failures(),
        stable=tuple(discovered_phases(store, search["stable_threshold"])),
        threshold=search["stable_threshold"],
        energy_scales={role: scale.id for role, scale in store.energy_scales().items()},
        budget=store.budget(limits),
        checkpoints=tuple(
            {
                "id": record.id,
                "round": record.round,
                "accepted": record.accepted,
                "reason": record.reason,
                **asdict(record.checkpoint),
            }
            for record in store.checkpoints()
        ),
        seconds=campaign.seconds,
    )


def discovered_phases(store: Store, max_e_above_hull: float, limit: int | None = None) -> list[DiscoveredPhase]:
    """Return what the campaign discovered within `max_e_above_hull` (eV/atom) of the newest reference hull.

    Elements, structures of a reference phase and all but the lowest phase of a structure are left out. Sorted by
    decomposition energy. With `limit`, only so many, those closest to the hull.
    """
    if not store.hull_versions("reference"):
        return []
    hull = store.hull("reference")
    search = store.campaign().config["campaign"]
    known = CrystalIndex(Matcher())
    near: list[tuple[float, Phase]] = []
    for phase in hull.phases:
        placed = hull.decompose(phase.composition, phase.energy_per_atom)
        if phase.crystal is None or placed is None:
            continue
        if phase.origin == "reference":
            known.add(phase.id, phase.crystal)
        elif len(phase.composition) > 1 and placed.e_above_hull <= max_e_above_hull:
            near.append((placed.e_above_hull, phase))
    found: list[DiscoveredPhase] = []
    for _, phase in sorted(near, key=lambda one: (one[0], one[1].energy_per_atom, one[1].id)):
        if len(found) == limit:
            break
        if phase.crystal is None or known.find(phase.crystal) is not None:
            continue
        known.add(phase.id, phase.crystal)
        verdict = hull.judge(phase.id, search["stable_threshold"], search["metastable_threshold"])
        found.append(DiscoveredPhase(phase, verdict, spacegroup(phase.crystal)[1]))
    return sorted(found, key=lambda phase: (phase.verdict.decomposition_energy, phase.phase.id))
