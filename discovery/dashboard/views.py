"""What a campaign looks like, as values: read from its store, drawn by others.

Every view is frozen and holds numbers and text alone. Energies are eV/atom, times hours or seconds as named.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from scipy.stats import binomtest

from discovery.calibration import Reliability, reliability
from discovery.crystal import Crystal
from discovery.dashboard.source import Source
from discovery.hull import Hull, Phase
from discovery.launch_check import remembered
from discovery.matching import Matcher, spacegroup
from discovery.status import discovered_phases
from discovery.store.queries import CandidateRecord, PhaseRecord, Waiting, hull_at
from discovery.store.store import ROLES, CheckpointRecord, HullVersion
from discovery.types import Budget, EnergyScale, Evaluation, Stability, State

SILENT_AFTER = 60.0
"""Seconds without a sign of life of the driver after which a running campaign is called silent."""

MAX_CALIBRATED = 10_000
"""Candidates up to which calibration is computed for a page."""

MAX_DISCOVERIES = 300
"""Discovered phases that are listed, those closest to the hull: each is compared with all others of its composition."""

MAX_DRAWN_ELEMENTS = 4
"""A phase diagram of more elements cannot be drawn; parts of the chemical space can."""


@dataclass(frozen=True)
class Summary:
    """What is known of a campaign at once.

    Parameters
    ----------
    key
        Names the campaign in addresses.
    state
        created, running, paused, interrupted, finished or failed; a campaign whose driver died is interrupted.
    round, rounds
        The newest round, counted from 0, and how many there will be.
    seconds
        Wall time of all drivers.
    heartbeat
        When the driver was last alive, seconds since the epoch.
    parts
        Agent, generator and both oracles by name.
    controls
        In what it is a control arm: a random agent, a generator that never learns; empty for an ordinary campaign.
    """

    key: str
    name: str
    chemical_space: str
    seed: int
    state: str
    message: str
    round: int
    rounds: int
    seconds: float
    heartbeat: float | None
    parts: Mapping[str, str]
    controls: tuple[str, ...]
    scales: Mapping[str, EnergyScale]
    threshold: float
    metastable_threshold: float
    budget: Budget

    @property
    def elements(self) -> tuple[str, ...]:
        """Element symbols of the chemical space."""
        return tuple(self.chemical_space.split("-"))


@dataclass(frozen=True)
class GrowthStep:
    """One version of the reference hull.

    Parameters
    ----------
    hours
        Since the first version.
    reference_calls, core_hours
        Spent until then.
    discovered
        New phases on the hull: found by the campaign, no elements, no structure of a reference phase.
    entered, left
        Ids of phases that came onto the hull or left it; those that left may be reference phases.
    """

    version: int
    round: int | None
    hours: float
    reference_calls: float
    core_hours: float
    discovered: int
    entered: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class HitRate:
    """Share of a round's verdicts that were ``stable`` when given, with Wilson's 95 % interval."""

    round: int
    judged: int
    stable: int
    metastable: int
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """One kind of budget: spent, reserved and allowed, and what all rounds will have spent at the present pace."""

    kind: str
    spent: float
    reserved: float
    limit: float | None
    projected: float | None
    """None before the first round is complete."""


@dataclass(frozen=True)
class Overview:
    """How a campaign goes."""

    summary: Summary
    funnel: Mapping[str, int]
    losses: Mapping[State, Mapping[str, int]]
    failures: Mapping[tuple[str, str], int]
    growth: tuple[GrowthStep, ...]
    formulas: Mapping[str, str]
    hits: tuple[HitRate, ...]
    forecasts: tuple[Forecast, ...]
    waiting: tuple[Waiting, ...]
    step: str
    stuck: tuple[str, ...]


@dataclass(frozen=True)
class HullPoint:
    """The lowest phase of one composition.

    Parameters
    ----------
    fractions
        Atomic fractions, in the order of the diagram's elements.
    discovered
        Whether the campaign found it.
    """

    id: str
    formula: str
    fractions: tuple[float, ...]
    formation_energy_per_atom: float
    e_above_hull: float
    on_hull: bool
    discovered: bool


@dataclass(frozen=True)
class HullDiagram:
    """A phase diagram: one energy scale, one version, the lowest phase of each composition."""

    role: str
    scale: EnergyScale
    version: int
    round: int | None
    elements: tuple[str, ...]
    points: tuple[HullPoint, ...]
    tie_lines: tuple[tuple[str, str], ...]
    """Pairs of ids of phases that coexist."""


@dataclass(frozen=True)
class Discovery:
    """One phase that the campaign found, placed on the newest hulls of both scales."""

    id: str
    formula: str
    chemsys: str
    spacegroup: str
    stability: str
    e_above_hull: float
    e_above_hull_screening: float | None
    decomposition_energy: float
    formation_energy_per_atom: float
    volume_per_atom: float
    n_atoms: int
    novelty: str
    round: int | None
    checkpoint: str
    core_hours: float


@dataclass(frozen=True)
class Shape:
    """Geometry of one crystal of a candidate: as generated, or as an oracle relaxed it; Å and degrees."""

    name: str
    crystal: Crystal
    spacegroup: str
    lengths: tuple[float, float, float]
    angles: tuple[float, float, float]
    volume_per_atom: float
    density: float
    """g/cm³."""
    shortest: Mapping[str, float]
    """Pair of elements → shortest distance in Å."""


@dataclass(frozen=True, eq=False)
class CrystalView:
    """One candidate or reference phase with all that is known of it."""

    id: str
    formula: str
    origin: str
    shapes: tuple[Shape, ...]
    evaluations: Mapping[str, Evaluation]
    e_above_hull: Mapping[str, float]
    """Role → distance from the newest hull."""
    record: CandidateRecord | None
    learned_into: tuple[str, ...]
    """Checkpoints that were trained on it."""


@dataclass(frozen=True)
class Parity:
    """Formation energies of the judged candidates on both scales, each against its own elements; eV/atom."""

    ids: tuple[str, ...]
    formulas: tuple[str, ...]
    chemsys: tuple[str, ...]
    screening: np.ndarray
    reference: np.ndarray

    def errors(self) -> list[tuple[str, int, float, float, float]]:
        """Return (chemical system, pairs, mean absolute error, root mean square error, mean difference), all first."""
        groups = {"all": np.ones(len(self.ids), dtype=bool)} if self.ids else {}
        for system in sorted(set(self.chemsys)):
            groups[system] = np.array([own == system for own in self.chemsys])
        difference = self.screening - self.reference
        return [
            (
                name,
                int(chosen.sum()),
                float(np.abs(difference[chosen]).mean()),
                float(math.sqrt((difference[chosen] ** 2).mean())),
                float(difference[chosen].mean()),
            )
            for name, chosen in groups.items()
        ]


@dataclass(frozen=True)
class OracleCheck:
    """What is remembered of the check of a role's oracle: its extent, and (quantity, deviation, limit, passed)."""

    role: str
    extent: str
    passed: bool
    rows: tuple[tuple[str, str, str, bool], ...]


@dataclass(frozen=True)
class Trust:
    """What the results can be trusted by.

    Parameters
    ----------
    calibration
        Predicted probabilities of being stable against what happened; None where a campaign is so large that reading
        all its candidates would take too long (more than `MAX_CALIBRATED`).
    """

    summary: Summary
    parity: Parity
    calibration: Reliability | None
    checks: tuple[OracleCheck, ...]
    checkpoints: tuple[CheckpointRecord, ...]
    formulas: Mapping[str, str]


# Reading ------------------------------------------------------------------------------------------------------------


def summary(source: Source) -> Summary:
    """Return what is known of the campaign at once."""
    campaign = source.store.campaign()
    config = campaign.config
    search = config["campaign"]
    alive = campaign.state not in ("running", "paused") or source.has_driver
    controls = []
    if config["agent"]["name"] == "random":
        controls.append("random agent")
    if not search.get("learn", True):
        controls.append("frozen generator")
    limits = {kind: amount for kind, amount in search["budget"].items() if amount is not None}
    return Summary(
        key=source.key,
        name=campaign.name,
        chemical_space=search["chemical_space"],
        seed=campaign.seed,
        state=campaign.state if alive else "interrupted",
        message=campaign.message if alive else "its driver is gone; discovery resume goes on with it",
        round=max((round for round, _ in source.store.steps()), default=0),
        rounds=search["rounds"],
        seconds=campaign.seconds,
        heartbeat=source.queries.heartbeat(),
        parts={
            "agent": config["agent"]["name"],
            "generator": config["generator"]["name"],
            "screening": config["oracle"]["screening"]["name"],
            "reference": config["oracle"]["reference"]["name"],
        },
        controls=tuple(controls),
        scales=source.store.energy_scales(),
        threshold=search["stable_threshold"],
        metastable_threshold=search["metastable_threshold"],
        budget=source.store.budget(limits),
    )


def overview(source: Source) -> Overview:
    """Return how the campaign goes."""
    revision = source.queries.revision()
    counts = source.remembered("counts", revision, lambda: _counts(source))
    now = summary(source)
    waiting = tuple(source.queries.waiting())
    return Overview(
        summary=now,
        growth=growth(source),
        formulas=_formulas(source),
        hits=tuple(source.remembered("hits", revision, lambda: hit_rates(source))),
        forecasts=tuple(_forecasts(now, len(_complete_rounds(source)))),
        waiting=waiting,
        step=_newest_step(source),
        stuck=tuple(_stuck(source, now, waiting)),
        **counts,
    )


def _counts(source: Source) -> dict[str, Any]:
    queries = source.queries
    return {"funnel": source.store.funnel(), "losses": queries.losses(), "failures": queries.failures()}


def _complete_rounds(source: Source) -> set[int]:
    return {round for round, step in source.store.steps() if step == "learned"}


def _newest_step(source: Source) -> str:
    steps = list(source.store.steps())
    return f"round {steps[-1][0] + 1}: {steps[-1][1]}" if steps else ""


def _forecasts(now: Summary, complete: int) -> list[Forecast]:
    budget = now.budget
    return [
        Forecast(
            kind=kind,
            spent=spent,
            reserved=budget.reserved.get(kind, 0.0),
            limit=budget.limit.get(kind),
            projected=spent * now.rounds / complete if complete and now.state != "finished" else None,
        )
        for kind, spent in budget.spent.items()
    ]


def _stuck(source: Source, now: Summary, waiting: Sequence[Waiting]) -> list[str]:
    """Say what should have moved and did not: work on which nothing ended for five times the longest evaluation."""
    if now.state != "running":
        return []
    found = []
    clock = time.time()
    if now.heartbeat is not None and clock - now.heartbeat > SILENT_AFTER:
        found.append(f"the driver has given no sign of life for {clock - now.heartbeat:.0f} s")
    pace = source.queries.pace()
    for role, state in (("screening", State.ADMITTED), ("reference", State.SELECTED)):
        group = next((group for group in waiting if group.state is state), None)
        if group is None or role not in pace:
            continue
        newest, longest = pace[role]
        quiet = clock - max(newest, group.since)
        if quiet > max(5 * longest, SILENT_AFTER):
            found.append(
                f"{group.count} candidates wait for the {role} oracle, which has ended nothing for {quiet:.0f} s "
                f"(longest evaluation so far {longest:.0f} s); the first is {group.oldest}"
            )
    return found


def hit_rates(source: Source) -> list[HitRate]:
    """Return the share of stable verdicts of every round that has verdicts."""
    rates = []
    for round, counts in source.queries.verdicts().items():
        judged, stable = sum(counts.values()), counts.get(Stability.STABLE, 0)
        interval = binomtest(stable, judged).proportion_ci(method="wilson")
        rates.append(
            HitRate(
                round, judged, stable, counts.get(Stability.METASTABLE, 0), float(interval.low), float(interval.high)
            )
        )
    return rates


def _newest_version(source: Source, role: str) -> int:
    return max(source.queries.hull_times(role), default=0)


def _formulas(source: Source) -> dict[str, str]:
    """Return id → formula of the phases of the reference hull."""
    return {record.phase.id: record.formula for record in _phases(source, "reference")}


def _phases(source: Source, role: str) -> list[PhaseRecord]:
    version = _newest_version(source, role)
    return source.remembered(f"phases {role}", version, lambda: source.queries.phases(role))


def _newest_hull(source: Source, role: str) -> Hull | None:
    version = _newest_version(source, role)
    return source.remembered(f"hull {role}", version, lambda: hull_at(_phases(source, role), version))


def _versions(source: Source, role: str) -> list[HullVersion]:
    return source.remembered(
        f"versions {role}", _newest_version(source, role), lambda: source.store.hull_versions(role)
    )


def growth(source: Source) -> tuple[GrowthStep, ...]:
    """Return all versions of the reference hull, oldest first."""
    version = _newest_version(source, "reference")
    return source.remembered("growth", version, lambda: tuple(_growth(source)))


def _growth(source: Source) -> list[GrowthStep]:
    versions = _versions(source, "reference")
    if not versions:
        return []
    times = source.queries.hull_times("reference")
    new = _new_phases(source, {id for version in versions for id in version.stable})
    when, calls, hours = source.queries.spent(("reference_calls", "core_hours"))
    first = times[versions[0].version]
    steps = []
    for before, version in pairwise([None, *versions]):
        assert version is not None  # noqa: S101 - only the first of all is None
        moment = times[version.version]
        until = np.searchsorted(when, moment, "right") - 1
        stable, earlier = set(version.stable), set(before.stable if before is not None else version.stable)
        steps.append(
            GrowthStep(
                version=version.version,
                round=version.round,
                hours=(moment - first) / 3600,
                reference_calls=float(calls[until]),
                core_hours=float(hours[until]),
                discovered=len(stable & new),
                entered=tuple(sorted(stable - earlier)),
                left=tuple(sorted(earlier - stable)),
            )
        )
    return steps


def _new_phases(source: Source, ids: set[str]) -> set[str]:
    """Return those of `ids` that the campaign found: no elements, and no structure of a reference phase."""
    known: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for record in _phases(source, "reference"):
        phase = record.phase
        if phase.origin == "reference":
            known.setdefault(record.formula, []).append(phase.id)
        elif phase.id in ids and len(phase.composition) > 1:
            found[phase.id] = record.formula
    compared = [id for formula in set(found.values()) for id in known.get(formula, ())]
    crystals = source.queries.crystals("reference", [*compared, *(id for id, f in found.items() if f in known)])
    matcher = Matcher()
    return {
        id
        for id, formula in found.items()
        if formula not in known
        or id not in crystals
        or matcher.find(crystals[id], {other: crystals[other] for other in known[formula] if other in crystals}) is None
    }


# Hull ---------------------------------------------------------------------------------------------------------------


def drawable_systems(elements: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the chemical systems of two to four of the elements, the largest first."""
    ordered = sorted(elements)
    sizes = range(min(len(ordered), MAX_DRAWN_ELEMENTS), 1, -1)
    return [system for size in sizes for system in combinations(ordered, size)]


def hull_stages(source: Source, role: str) -> list[tuple[str, int]]:
    """Return (label, hull version) at the end of each round that changed the hull, the reference phases first."""
    stages: dict[int | None, int] = {}
    for version in _versions(source, role):
        stages[version.round] = version.version
    return [("known" if round is None else f"round {round + 1}", version) for round, version in stages.items()]


def hull_diagram(
    source: Source, role: str, elements: tuple[str, ...], version: int | None = None
) -> HullDiagram | None:
    """Return the phase diagram of some elements; None as long as there is no hull."""
    newest = _newest_version(source, role)
    version = newest if version is None else min(version, newest)
    hull = hull_at([one for one in _phases(source, role) if one.phase.composition.keys() <= set(elements)], version)
    if hull is None or set(elements) - set(hull.elements):
        return None
    rounds = {found.version: found.round for found in _versions(source, role)}
    lowest: dict[tuple[float, ...], Phase] = {}
    for phase in hull.phases:
        total = sum(phase.composition.values())
        key = tuple(round(phase.composition.get(element, 0.0) / total, 8) for element in elements)
        if key not in lowest or (phase.energy_per_atom, phase.id) < (lowest[key].energy_per_atom, lowest[key].id):
            lowest[key] = phase
    corners = {phase.id for phase in hull.stable_phases}
    points = []
    for fractions, phase in lowest.items():
        placed = hull.decompose(phase.composition, phase.energy_per_atom)
        formation = hull.formation_energy_per_atom(phase.composition, phase.energy_per_atom)
        if placed is not None and formation is not None:
            discovered = phase.origin == "discovered"
            on_hull = phase.id in corners
            points.append(
                HullPoint(phase.id, phase.formula, fractions, formation, placed.e_above_hull, on_hull, discovered)
            )
    return HullDiagram(
        role, hull.energy_scale, version, rounds.get(version), elements, tuple(points), hull.tie_lines(elements)
    )


# Discoveries --------------------------------------------------------------------------------------------------------


def discoveries(source: Source) -> list[Discovery]:
    """Return stable and metastable phases that the campaign found, the most stable first, `MAX_DISCOVERIES` at most."""
    versions = tuple(_newest_version(source, role) for role in ROLES)
    return source.remembered("discoveries", versions, lambda: _discoveries(source))


def _discoveries(source: Source) -> list[Discovery]:
    if not _newest_version(source, "reference"):
        return []
    search = source.store.campaign().config["campaign"]
    found = discovered_phases(source.store, search["metastable_threshold"], MAX_DISCOVERIES)
    ids = [one.phase.id for one in found]
    screening_phases = _phases(source, "screening")
    screening = _newest_hull(source, "screening")
    screened = {record.phase.id: record.phase for record in screening_phases}
    known = {record.formula for record in _phases(source, "reference") if record.phase.origin == "reference"}
    origin, costs = source.queries.checkpoints_of(ids), source.queries.costs_of(ids)
    rows = []
    for one in found:
        phase, crystal = one.phase, one.phase.crystal
        if crystal is None:
            continue
        round, checkpoint = origin.get(phase.id, (None, None))
        rows.append(
            Discovery(
                id=phase.id,
                formula=phase.formula,
                chemsys=crystal.chemsys,
                spacegroup=one.spacegroup,
                stability=str(one.verdict.stability),
                e_above_hull=one.verdict.e_above_hull,
                e_above_hull_screening=_distance(screening, screened.get(phase.id)),
                decomposition_energy=one.verdict.decomposition_energy,
                formation_energy_per_atom=one.verdict.formation_energy_per_atom,
                volume_per_atom=crystal.volume / len(crystal),
                n_atoms=len(crystal),
                novelty="new structure" if phase.formula in known else "new composition",
                round=round,
                checkpoint=checkpoint[:12] if checkpoint else "",
                core_hours=costs.get(phase.id, 0.0),
            )
        )
    return rows


def _distance(hull: Hull | None, phase: Phase | None) -> float | None:
    if hull is None or phase is None:
        return None
    placed = hull.decompose(phase.composition, phase.energy_per_atom)
    return placed.e_above_hull if placed is not None else None


# One crystal --------------------------------------------------------------------------------------------------------


def crystal_view(source: Source, id: str) -> CrystalView | None:
    """Return a candidate or a reference phase, or None if neither has this id."""
    record = source.queries.candidate(id)
    evaluations = source.queries.evaluations(id)
    shapes: list[tuple[str, Crystal | None]]
    if record is not None:
        shapes = [("generated", record.crystal)]
        origin = f"candidate of round {record.round + 1}"
    else:
        known = source.queries.reference(id)
        if known is None:
            return None
        shapes = [("as given", known[0])]
        origin = f"reference phase ({known[1]})"
    shapes += [(f"relaxed by the {role} oracle", evaluations[role].crystal) for role in ROLES if role in evaluations]
    newest = next((crystal for _, crystal in reversed(shapes) if crystal is not None), None)
    distances = {}
    for role in ROLES:
        own = next((record.phase for record in _phases(source, role) if record.phase.id == id), None)
        distance = _distance(_newest_hull(source, role), own) if own is not None else None
        if distance is not None:
            distances[role] = distance
    return CrystalView(
        id=id,
        formula=newest.formula if newest is not None else "no crystal",
        origin=origin,
        shapes=tuple(_shape(name, crystal) for name, crystal in shapes if crystal is not None),
        evaluations=evaluations,
        e_above_hull=distances,
        record=record,
        learned_into=tuple(one.id for one in source.store.checkpoints() if id in one.checkpoint.trained_on),
    )


def _shape(name: str, crystal: Crystal) -> Shape:
    structure = crystal.to_structure()
    lattice = structure.lattice
    return Shape(
        name=name,
        crystal=crystal,
        spacegroup=spacegroup(crystal)[1],
        lengths=lattice.lengths,
        angles=lattice.angles,
        volume_per_atom=crystal.volume / len(crystal),
        density=float(structure.density),
        shortest=_shortest_distances(crystal),
    )


def _shortest_distances(crystal: Crystal) -> dict[str, float]:
    """Return pair of elements → shortest distance in Å, periodic images included; pairs beyond 6 Å are left out."""
    structure = crystal.to_structure()
    centers, neighbors, _, distances = structure.get_neighbor_list(6.0)
    symbols = [site.specie.symbol for site in structure]
    shortest: dict[str, float] = {}
    for one, other, distance in zip(centers, neighbors, distances, strict=True):
        pair = "–".join(sorted((symbols[one], symbols[other])))
        shortest[pair] = min(float(distance), shortest.get(pair, math.inf))
    return dict(sorted(shortest.items(), key=lambda item: item[1]))


# Trust --------------------------------------------------------------------------------------------------------------


def trust(source: Source) -> Trust:
    """Return what the results can be trusted by."""
    pairs = source.remembered("pairs", source.queries.revision(), source.queries.pairs)
    phases = {record.phase.id: record for record in _phases(source, "reference")}
    parity = Parity(
        ids=tuple(id for id, *_ in pairs),
        formulas=tuple(formula for _, formula, *_ in pairs),
        chemsys=tuple("-".join(sorted(phases[id].phase.composition)) if id in phases else "?" for id, *_ in pairs),
        screening=np.array([screening for *_, screening, _ in pairs], dtype=np.float64),
        reference=np.array([reference for *_, reference in pairs], dtype=np.float64),
    )
    checkpoints = tuple(source.store.checkpoints())
    learned = {id for one in checkpoints for id in one.checkpoint.trained_on}
    formulas = {id: phases[id].formula for id in learned if id in phases}
    now = summary(source)
    calibration = None
    if source.store.funnel()["sampled"] <= MAX_CALIBRATED:
        version = _newest_version(source, "reference")
        calibration = source.remembered("calibration", version, lambda: _reliability(source))
    return Trust(now, parity, calibration, tuple(_checks(source, now)), checkpoints, formulas)


def _reliability(source: Source) -> Reliability:
    if not all(_newest_version(source, role) for role in ROLES):
        return Reliability(())
    return reliability(source.store)


def _checks(source: Source, now: Summary) -> list[OracleCheck]:
    """Return what this user's cache remembers of checks of the campaign's oracles, on their energy scales."""
    config = source.store.campaign().config
    found = []
    for role, scale in now.scales.items():
        report = remembered(config["oracle"][role], scale, now.elements)
        if report is not None:
            rows = [
                (
                    f"{item['quantity']} of {item['subject']}",
                    f"{item['deviation']:+.2g} {item['unit']}" if item["deviation"] is not None else item["problem"],
                    f"± {item['tolerance']:.2g} {item['unit']}",
                    item["passed"],
                )
                for item in report["checks"]
            ]
            found.append(OracleCheck(role, report["extent"], report["passed"], tuple(rows)))
    return found


def renamed(one: Summary, others: Sequence[Summary]) -> Summary:
    """Return the summary with its key in the name, if another campaign has the same name."""
    same = sum(other.name == one.name for other in others)
    return replace(one, name=f"{one.name} ({one.key})") if same > 1 else one
