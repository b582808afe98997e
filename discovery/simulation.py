"""Whole campaigns against known answers: many seeds, several arms, and what each found per reference calculation.

A simulated campaign is a campaign: the same code, in one process, with oracles that answer from files or cost little.
Its hidden phases are those of a database in the campaign's chemical space, its known ones are the reference phases.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from discovery import config as configuration
from discovery.calibration import Prediction, Reliability, reliability
from discovery.config import AgentChoice, CampaignConfig, GeneratorChoice, OracleChoice, compose, compose_choice
from discovery.crystal import Crystal
from discovery.errors import ConfigError, InvalidInputError, RunError
from discovery.hull import Hull, Phase
from discovery.processes import process_pool
from discovery.references import ReferencesConfig, read_csv
from discovery.runfolder import RunFolder
from discovery.sets import read_set
from discovery.status import read_status
from discovery.types import EnergyScale, State

SIMULATION_FORMAT = "discovery.simulation/1"
FORMATION_ENERGIES = EnergyScale("formation energies", "1", "as recorded")
"""Scale of the hull on which findings are counted: formation energies, with the elements at zero."""

CONTROLS: Mapping[str, str] = {
    "frozen": "the generator learns nothing",
    "random": "random compositions, random selection",
    "random_search": "random search as generator",
    "substitution": "ion substitution as generator",
    "no_screening": "candidates go to the reference oracle as they are sampled, whatever their energy",
}
"""Control arms of a campaign and what each does without."""

BOOTSTRAP = 10_000
"""Resamples of the seeds."""
CONFIDENCE = 0.95
"""Of all intervals."""

SHARES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the budget at which arms are compared."""

Progress = Callable[[int, int, str], None]
"""Is told how many campaigns are finished, of how many, and which was the last one."""


@dataclass(frozen=True)
class Call:
    """One reference calculation of a candidate; `formation_energy_per_atom` (eV/atom) is None if it failed."""

    candidate: str
    round: int
    composition: Mapping[str, float]
    formation_energy_per_atom: float | None
    core_hours: float


@dataclass(frozen=True)
class Trajectory:
    """The reference calculations of one campaign in the order in which they were selected.

    `predictions` are how probably stable each candidate was when it was selected, from what was known then.
    """

    arm: str
    seed: int
    calls: tuple[Call, ...]
    predictions: tuple[Prediction, ...] = ()


@dataclass(frozen=True)
class KnownPhase:
    """A phase of which the answer is known; `hidden` ones are for the campaign to find."""

    id: str
    composition: Mapping[str, float]
    formation_energy_per_atom: float
    n_atoms: int
    hidden: bool


_Job = tuple[str, int]
"""Arm and seed."""
_Outcome = tuple[Trajectory, tuple[KnownPhase, ...]]
"""What a campaign computed, and the compounds that it knew."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (percentile bootstrap over seeds)."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return a JSON form; None stands for infinity."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Simulation:
    """What simulated campaigns have found.

    Parameters
    ----------
    elements
        The chemical space.
    budget
        Reference calculations that each campaign may make.
    threshold
        eV/atom above the final hull up to which a phase counts as stable.
    max_atoms
        Largest cell that campaigns ask for.
    phases
        Reference phases and the phases of the database.
    trajectories
        One per arm and seed.
    """

    elements: tuple[str, ...]
    budget: int
    threshold: float
    max_atoms: int
    phases: tuple[KnownPhase, ...]
    trajectories: tuple[Trajectory, ...]

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the order in which they were given."""
        return list(dict.fromkeys(trajectory.arm for trajectory in self.trajectories))

    @cached_property
    def hull(self) -> Hull:
        """The final hull: elements, known and hidden phases, and whatever any campaign found."""
        elements = [Phase(f"element:{element}", {element: 1}, 0.0, FORMATION_ENERGIES) for element in self.elements]
        known = [_phase(phase.id, phase.composition, phase.formation_energy_per_atom) for phase in self.phases]
        found = [
            _phase(f"{trajectory.arm}:{trajectory.seed}:{call.candidate}", call.composition, energy)
            for trajectory in self.trajectories
            for call in trajectory.calls
            if (energy := call.formation_energy_per_atom) is not None
        ]
        return Hull(FORMATION_ENERGIES, (*elements, *known, *found), 1)

    @cached_property
    def stable(self) -> frozenset[str]:
        """Formulas of the compounds that are stable on the final hull and were not known."""
        known = {
            _formula(phase.composition)
            for phase in self.phases
            if not phase.hidden and self._is_stable(phase.composition, phase.formation_energy_per_atom)
        }
        stable = {
            phase.formula
            for phase in self.hull.phases
            if len(phase.composition) > 1 and self._is_stable(phase.composition, phase.energy_per_atom)
        }
        return frozenset(stable - known)

    @cached_property
    def reachable(self) -> frozenset[str]:
        """Those of the stable compounds that were found by some campaign or fit into a cell that may be asked for."""
        fitting = {
            _formula(phase.composition)
            for phase in self.phases
            if phase.hidden
            and phase.n_atoms <= self.max_atoms
            and self._is_stable(phase.composition, phase.formation_energy_per_atom)
        }
        found = {formula for trajectory in self.trajectories for formula in self._finds(trajectory) if formula}
        return frozenset((fitting | found) & self.stable)

    def found(self, arm: str) -> np.ndarray:
        """Return stable phases found after 0, 1, …, `budget` calls, shape (seeds, budget + 1)."""
        rows = []
        for trajectory in self.trajectories:
            if trajectory.arm == arm:
                seen: set[str] = set()
                counts = [0]
                for formula in self._finds(trajectory)[: self.budget]:
                    seen |= {formula} if formula is not None else set()
                    counts.append(len(seen))
                rows.append(counts + [counts[-1]] * (self.budget + 1 - len(counts)))
        return np.array(rows)

    def yield_per_call(self, arm: str, share: float) -> Estimate:
        """Return stable phases found per reference calculation, after `share` of the budget."""
        calls = self.calls(share)
        found = self.found(arm)[:, calls]
        means = _resampled(found) / calls
        return Estimate(float(found.mean()) / calls, *_interval(means))

    def acceleration(self, arm: str, baseline: str, share: float) -> Estimate:
        """Return how many times as many stable phases `arm` has found as `baseline` after `share` of the budget."""
        calls = self.calls(share)
        ours, theirs = self.found(arm)[:, calls], self.found(baseline)[:, calls]
        value = _ratio(np.array([ours.mean()]), np.array([theirs.mean()]))[0]
        ratios = _ratio(_resampled(ours), _resampled(theirs, seed=1))
        return Estimate(float(value), *_interval(ratios))

    def advantages(self, arm: str, baseline: str, share: float) -> dict[int, int]:
        """Return seed → how many more stable phases `arm` has found than `baseline` after `share` of the budget."""
        calls = self.calls(share)
        ours, theirs = (
            dict(zip(self._seeds(name), self.found(name)[:, calls].tolist(), strict=True)) for name in (arm, baseline)
        )
        return {seed: found - theirs[seed] for seed, found in ours.items() if seed in theirs}

    def _seeds(self, arm: str) -> list[int]:
        return [trajectory.seed for trajectory in self.trajectories if trajectory.arm == arm]

    def reliability(self, arm: str) -> Reliability:
        """Return what was predicted in all campaigns of `arm` against what happened."""
        return Reliability(
            tuple(one for trajectory in self.trajectories if trajectory.arm == arm for one in trajectory.predictions)
        )

    def calls(self, share: float) -> int:
        """Return how many reference calculations `share` of the budget is, at least one."""
        return max(1, round(share * self.budget))

    def _finds(self, trajectory: Trajectory) -> list[str | None]:
        """Return, for each call, the formula of the stable compound that it found, or None."""
        return [
            _formula(call.composition)
            if call.formation_energy_per_atom is not None
            and _formula(call.composition) in self.stable
            and self._is_stable(call.composition, call.formation_energy_per_atom)
            else None
            for call in trajectory.calls
        ]

    def _is_stable(self, composition: Mapping[str, float], formation_energy_per_atom: float) -> bool:
        placed = self.hull.decompose(composition, formation_energy_per_atom)
        return placed is not None and placed.e_above_hull <= self.threshold

    def summary(self, baseline: str, shares: Sequence[float] = SHARES) -> dict[str, Any]:
        """Return what each arm found at `shares` of the budget and how it compares with `baseline`, as JSON values."""
        arms = {}
        for arm in self.arms:
            found = self.found(arm)
            at_shares = {}
            for share in shares:
                at = {
                    "calls": self.calls(share),
                    "found": float(found[:, self.calls(share)].mean()),
                    "yield_per_call": self.yield_per_call(arm, share).to_dict(),
                }
                if baseline in self.arms and arm != baseline:
                    at["acceleration"] = self.acceleration(arm, baseline, share).to_dict()
                at_shares[f"{share:g}"] = at
            scores = self.reliability(arm).to_dict()
            del scores["predictions"]
            arms[arm] = {"seeds": len(found), "shares": at_shares, "calibration": scores}
        return {
            "chemical_space": "-".join(self.elements),
            "budget": self.budget,
            "hidden_stable_phases": sorted(self.stable),
            "within_reach": sorted(self.reachable),
            "baseline": baseline,
            "arms": arms,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_dict` reads."""
        return {"format": SIMULATION_FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Simulation:
        """Read the form that :meth:`to_dict` writes."""
        if data.get("format") != SIMULATION_FORMAT:
            raise InvalidInputError(f"simulation has format {data.get('format')!r}, expected {SIMULATION_FORMAT!r}")
        return cls(
            elements=tuple(data["elements"]),
            budget=data["budget"],
            threshold=data["threshold"],
            max_atoms=data["max_atoms"],
            phases=tuple(KnownPhase(**phase) for phase in data["phases"]),
            trajectories=tuple(
                Trajectory(
                    one["arm"],
                    one["seed"],
                    tuple(Call(**call) for call in one["calls"]),
                    tuple(Prediction(**prediction) for prediction in one.get("predictions", ())),
                )
                for one in data["trajectories"]
            ),
        )


# Arms -----------------------------------------------------------------------------------------------------------------


def agent_arms(
    config: CampaignConfig, agents: Iterable[str], config_dir: Path | None = None
) -> dict[str, CampaignConfig]:
    """Return agent → the campaign with that agent; names are those of configurations in ``agent/``."""
    return {
        name: config.model_copy(update={"agent": compose_choice(AgentChoice, name, config_dir=config_dir)})
        for name in agents
    }


def control_arms(config: CampaignConfig) -> dict[str, CampaignConfig]:
    """Return the control arms of a campaign, see :data:`CONTROLS`; those that equal the campaign are left out."""
    frozen = config.campaign.model_copy(update={"learn": False})
    unscreened = config.oracle.model_copy(update={"screening": compose_choice(OracleChoice, "none")})
    arms = {
        "frozen": config.model_copy(update={"campaign": frozen}),
        "random": config.model_copy(update={"agent": compose_choice(AgentChoice, "random")}),
        "random_search": config.model_copy(update={"generator": compose_choice(GeneratorChoice, "random_search")}),
        "substitution": config.model_copy(update={"generator": compose_choice(GeneratorChoice, "substitution")}),
        "no_screening": config.model_copy(update={"oracle": unscreened}),
    }
    return {name: arm for name, arm in arms.items() if arm.config_hash != config.config_hash}


# The database ---------------------------------------------------------------------------------------------------------


def read_database(paths: Sequence[Path], elements: Sequence[str], known: float = 0.0, *, seed: int = 0) -> Database:
    """Read the phases of a chemical space from files of known results.

    Parameters
    ----------
    paths
        CSV files with ``cif`` and ``formation_energy_per_atom``; or any form of :func:`discovery.sets.read_set` with
        energies, from which formation energies are taken if the elements are there. A material id counts once.
    elements
        The chemical space.
    known
        Share of the compounds, drawn with `seed`, that the campaign knows beforehand.

    Raises
    ------
    InvalidInputError
        If no compound of the space is there.
    """
    found: dict[str, tuple[Crystal, float]] = {}
    for path in paths:
        for id_, crystal, energy in _members(path, frozenset(elements)):
            found.setdefault(id_, (crystal, energy))
    compounds = sorted(id_ for id_, (crystal, _) in found.items() if len(crystal.composition) > 1)
    if not compounds:
        names = ", ".join(map(str, paths))
        raise InvalidInputError(f"{names}: no compound of {'-'.join(elements)} with an energy; choose another space")
    drawn = np.random.default_rng(seed).permutation(len(compounds))[: round(known * len(compounds))]
    return Database(found, frozenset(compounds[index] for index in drawn))


@dataclass(frozen=True)
class Database:
    """Phases of a chemical space: id → crystal and formation energy (eV/atom), and the ids of those that are known."""

    entries: Mapping[str, tuple[Crystal, float]]
    known: frozenset[str]

    @property
    def phases(self) -> tuple[KnownPhase, ...]:
        """The compounds."""
        return tuple(
            KnownPhase(
                id_,
                crystal.composition.get_el_amt_dict(),
                energy,
                len(crystal.to_structure().get_primitive_structure()),
                id_ not in self.known,
            )
            for id_, (crystal, energy) in sorted(self.entries.items())
            if len(crystal.composition) > 1
        )

    def write(self, path: Path, ids: Collection[str] | None = None) -> None:
        """Write a CSV file of all phases, or of some, in the form that oracles, generators and references read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("material_id", "pretty_formula", "formation_energy_per_atom", "cif"))
            for id_, (crystal, energy) in sorted(self.entries.items()):
                if ids is None or id_ in ids:
                    writer.writerow((id_, crystal.formula, repr(energy), crystal.to_structure().to(fmt="cif")))


def _members(path: Path, space: frozenset[str]) -> Iterator[tuple[str, Crystal, float]]:
    if path.name.endswith((".csv", ".csv.gz")):
        for row in read_csv(path, sorted(space)).crystals:
            if "formation_energy_per_atom" in row.properties:
                yield row.id, row.crystal, row.properties["formation_energy_per_atom"]
        return
    members = [
        (member.id, member.crystal, member.energies)
        for member in read_set(path).members
        if member.crystal is not None and {element.symbol for element in member.crystal.composition} <= space
    ]
    hull = Hull(FORMATION_ENERGIES).add(
        _phase(id_, crystal.composition.get_el_amt_dict(), energies.total)
        for id_, crystal, energies in members
        if energies.total is not None
    )
    for id_, crystal, energies in members:
        formation = energies.formation
        if formation is None and energies.total is not None:
            formation = hull.formation_energy_per_atom(crystal.composition.get_el_amt_dict(), energies.total)
        if formation is not None:
            yield id_, crystal, formation


# Campaigns ------------------------------------------------------------------------------------------------------------


def replay(
    campaign: str,
    overrides: Sequence[str] = (),
    *,
    out: Path,
    databases: Sequence[Path] = (),
    known: float = 0.0,
    agents: Sequence[str] = (),
    controls: bool = False,
    seeds: Sequence[int] = range(10),
    workers: int = 1,
    config_dir: Path | None = None,
    progress: Progress | None = None,
) -> Simulation:
    """Simulate a campaign with several agents, and with its control arms if `controls`.

    The phases of `databases` in the chemical space are written to ``OUT/database.csv``, where the choices called
    ``replay`` (oracle and generator) look for them; those known beforehand become reference phases.

    Parameters
    ----------
    campaign, overrides, config_dir
        As :func:`discovery.config.compose` takes them; ``run_dir`` is `out`.
    out, seeds, workers, progress
        As :func:`simulate` takes them.
    databases, known
        As :func:`read_database` takes them.
    agents
        Names of configurations of agents; without any, the campaign's own.

    Raises
    ------
    ConfigError
        If the configuration is wrong.
    InvalidInputError
        If the database is.
    """
    config = compose(campaign, [*overrides, f"run_dir='{out.resolve()}'"], config_dir)
    phases: tuple[KnownPhase, ...] = ()
    if databases:
        database = read_database(databases, config.campaign.elements, known)
        phases = database.phases
        database.write(out / "database.csv")
        if database.known:
            database.write(out / "known.csv", database.known)
            references = ReferencesConfig(source="csv", path=(out / "known.csv").resolve())
            config = config.model_copy(update={"references": references})
    arms = agent_arms(config, agents, config_dir) if agents else {config.agent.name: config}
    if controls:
        arms |= {name: arm for name, arm in control_arms(config).items() if name not in arms}
    return simulate(arms, seeds, out, database=phases, workers=workers, progress=progress)


def simulate(
    arms: Mapping[str, CampaignConfig],
    seeds: Sequence[int],
    out: Path,
    *,
    database: Sequence[KnownPhase] = (),
    workers: int = 1,
    progress: Progress | None = None,
) -> Simulation:
    """Run one campaign per arm and seed in ``OUT/<arm>/<seed>``; what is there already is read or gone on with.

    Parameters
    ----------
    arms
        Name → configuration; `seed`, `run_dir` and `executor` are replaced.
    seeds
        Seeds of the campaigns.
    out
        Folder of the run folders.
    database
        Hidden phases, from which the final hull is known before anything is found.
    workers
        Campaigns that run at the same time, each in a process of its own.
    progress
        Is told how many campaigns are finished, of how many, and which was the last one.

    Raises
    ------
    ConfigError
        If a campaign has no budget of reference calculations, or the arms differ in what is compared.
    """
    budget, first = _common(arms)
    jobs = {
        (name, seed): _seeded(config, seed, out / name / f"{seed:03d}")
        for name, config in arms.items()
        for seed in seeds
    }
    finished: dict[_Job, _Outcome] = {}
    for job, result in _run_all(jobs, workers):
        finished[job] = result
        if progress is not None:
            progress(len(finished), len(jobs), f"{job[0]}, seed {job[1]}")
    return _collected(list(finished.values()), first, database, budget, order=list(arms))


def collect(runs: Sequence[tuple[str, Path]]) -> Simulation:
    """Return what finished campaigns have found: pairs of an arm's name and a run folder, of one chemical space."""
    outcomes = [_read(name, run) for name, run in runs]
    first = configuration.read(RunFolder(runs[0][1]).config)
    most = max(len(trajectory.calls) for trajectory, _ in outcomes)
    budget = first.campaign.budget.reference_calls
    return _collected(outcomes, first, (), most if budget is None else budget, order=[name for name, _ in runs])


def _collected(
    outcomes: Sequence[_Outcome],
    first: CampaignConfig,
    database: Sequence[KnownPhase],
    budget: int,
    *,
    order: Sequence[str],
) -> Simulation:
    hidden = tuple(phase for phase in database if phase.hidden)
    ids = {phase.id for phase in hidden}
    trajectories = [trajectory for trajectory, _ in outcomes]
    return Simulation(
        elements=first.campaign.elements,
        budget=budget,
        threshold=first.campaign.stable_threshold,
        max_atoms=first.campaign.max_atoms,
        phases=(*(phase for phase in outcomes[0][1] if phase.id not in ids), *hidden),
        trajectories=tuple(sorted(trajectories, key=lambda one: (order.index(one.arm), one.seed))),
    )


def _run_all(jobs: Mapping[_Job, CampaignConfig], workers: int) -> Iterator[tuple[_Job, _Outcome]]:
    """Yield each job with its outcome as it is finished."""
    if workers == 1:
        for job, config in jobs.items():
            yield job, _run(job[0], config.model_dump(mode="json"))
        return
    with process_pool(workers) as pool:
        running = {pool.submit(_run, job[0], config.model_dump(mode="json")): job for job, config in jobs.items()}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _common(arms: Mapping[str, CampaignConfig]) -> tuple[int, CampaignConfig]:
    """Return the budget of reference calculations, and one of the configurations, which must agree."""
    if not arms:
        raise ConfigError("no arm to simulate; name at least one agent")
    first = next(iter(arms.values()))
    budget = first.campaign.budget.reference_calls
    if budget is None:
        raise ConfigError("campaign.budget.reference_calls: missing; simulated campaigns are compared per calculation")
    for name, config in arms.items():
        same = ("elements", "stable_threshold", "max_atoms", "budget")
        if any(getattr(config.campaign, key) != getattr(first.campaign, key) for key in same):
            raise ConfigError(f"arm {name} differs in {', '.join(same)}; arms are compared at equal space and budget")
    return budget, first


def _seeded(config: CampaignConfig, seed: int, run_dir: Path) -> CampaignConfig:
    executor = config.executor.model_copy(update={"name": "in_process"})
    return config.model_copy(update={"seed": seed, "run_dir": run_dir, "executor": executor})


def _run(arm: str, data: dict[str, Any]) -> _Outcome:
    """Bring one campaign to its end and return what it computed and knew; its calculations are in its database."""
    from discovery.campaign import Campaign

    config = CampaignConfig.model_validate(data)
    folder = RunFolder(config.run_dir)
    if not folder.holds_campaign:
        with Campaign.launch(config) as campaign:
            campaign.run()
    elif read_status(folder.path).state != "finished":
        with Campaign.resume(folder.path) as campaign:
            campaign.run()
    if configuration.read(folder.config).config_hash != config.config_hash:
        raise RunError(f"{folder.path} holds a campaign of other settings; simulate into another folder (--out)")
    outcome = _read(arm, folder.path)
    shutil.rmtree(folder.path / "calculations", ignore_errors=True)
    return outcome


def _read(arm: str, run: Path) -> _Outcome:
    store = RunFolder(run).read_store()
    try:
        candidates = {candidate.id: candidate for candidate in store.candidates()}
        calls = []
        for id_, _, state, _ in store.transitions():
            candidate = candidates.get(id_)
            if state is not State.SELECTED or candidate is None or candidate.reference is None:
                continue
            verdict = candidate.verdict
            calls.append(
                Call(
                    id_,
                    candidate.round,
                    candidate.crystal.composition.get_el_amt_dict(),
                    verdict.formation_energy_per_atom if verdict is not None else None,
                    candidate.reference.core_hours,
                )
            )
        hull = store.hull("reference")
        known = tuple(
            KnownPhase(phase.id, dict(phase.composition), energy, int(sum(phase.composition.values())), hidden=False)
            for phase in hull.phases
            if phase.origin == "reference"
            and len(phase.composition) > 1
            and (energy := hull.formation_energy_per_atom(phase.composition, phase.energy_per_atom)) is not None
        )
        return Trajectory(arm, store.campaign().seed, tuple(calls), reliability(store).predictions), known
    finally:
        store.close()


# Statistics -----------------------------------------------------------------------------------------------------------


def _resampled(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Means of `BOOTSTRAP` resamples."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP, len(values)))
    means: np.ndarray = values[drawn].mean(axis=1)
    return means


def _interval(values: np.ndarray) -> tuple[float, float]:
    ordered = np.sort(values)
    tail = (1 - CONFIDENCE) / 2
    return float(ordered[int(tail * len(ordered))]), float(ordered[int((1 - tail) * len(ordered)) - 1])


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Ratio; infinite where only the denominator is zero, 1 where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator / denominator
    return np.where(denominator > 0, ratio, np.where(numerator > 0, np.inf, 1.0))


def _phase(id_: str, composition: Mapping[str, float], energy_per_atom: float) -> Phase:
    return Phase(id_, composition, energy_per_atom * sum(composition.values()), FORMATION_ENERGIES)


def _formula(composition: Mapping[str, float]) -> str:
    from pymatgen.core import Composition

    return Composition(composition).reduced_formula
