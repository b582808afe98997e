"""A made-up campaign of any size, to measure what reads it: real tables, invented crystals and energies.

Four elements, 50 rounds; the shares of rejected, failed, passed over, judged and waiting candidates are those of small
real campaigns. Energies follow a random pair model with noise; hulls and verdicts are computed from them. Run as::

    python benchmarks/large_campaign.py FOLDER --candidates 100000
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from discovery.config import CampaignConfig
from discovery.crystal import Crystal
from discovery.hull import Hull, Phase
from discovery.runfolder import RunFolder
from discovery.store import ReferenceRecord, Store, TargetRecord, sqlite_url
from discovery.store.tables import (
    Base,
    CandidateRow,
    EvaluationRow,
    HullVersionRow,
    LedgerRow,
    PhaseRow,
    StepRow,
    TransitionRow,
)
from discovery.types import EnergyScale, Evaluation, State, Target

ELEMENTS = {"Al": 13, "Ni": 28, "Cu": 29, "Pt": 78}
SCALES = {
    "screening": EnergyScale("invented", "1", "mlff", "a3f1"),
    "reference": EnergyScale("invented", "1", "PBE", "b7c2"),
}
ROUNDS = 50
SAMPLES_PER_TARGET = 20
START = 1_760_000_000.0
SECONDS_PER_CANDIDATE = 0.8
BATCH = 5_000
MAX_WAITING = 100
"""Screened candidates that wait for selection; the engine limits them as well (``campaign.max_screened``)."""

THRESHOLD, METASTABLE = 0.001, 0.1


class PairModel:
    """Energies in eV/atom that depend on composition, with structure as noise."""

    def __init__(self, rng: np.random.Generator) -> None:
        pair = rng.normal(-0.4, 0.3, (len(ELEMENTS), len(ELEMENTS)))
        self._pair = (pair + pair.T) / 2
        np.fill_diagonal(self._pair, 0.0)

    def energies(self, counts: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
        """Return screening and reference energy of a cell in eV."""
        fractions = counts / counts.sum()
        bond = float(fractions @ self._pair @ fractions) + rng.exponential(0.08) * (np.count_nonzero(counts) > 1)
        n_atoms = int(counts.sum())
        return (bond - 3.0 + rng.normal(0.0, 0.02) * (np.count_nonzero(counts) > 1)) * n_atoms, (bond - 4.0) * n_atoms


def crystal_of(counts: np.ndarray, rng: np.random.Generator) -> Crystal:
    """Return a crystal with atoms at random places in a cube of 15 Å³ per atom."""
    numbers = np.repeat(list(ELEMENTS.values()), counts)
    return Crystal(np.eye(3) * (15.0 * len(numbers)) ** (1 / 3), rng.random((len(numbers), 3)), numbers)


def make(config: CampaignConfig, n_candidates: int) -> None:
    """Write the run folder of a campaign that was interrupted after so many candidates."""
    rng = np.random.default_rng(config.seed)
    folder = RunFolder(config.run_dir)
    folder.create()
    config.save(folder.config)
    store = Store.create(
        sqlite_url(folder.database),
        name=config.name,
        seed=config.seed,
        config=config.model_dump(mode="json"),
        config_hash=config.config_hash,
    )
    store.start_session()
    campaign = _Rows(PairModel(rng), rng, n_candidates)
    for role, scale in SCALES.items():
        store.set_energy_scale(role, scale)
    references = [
        ReferenceRecord(f"element-{symbol}", crystal_of(np.eye(4, dtype=int)[index] * 4, rng), "invented", {})
        for index, symbol in enumerate(ELEMENTS)
    ]
    store.add_references(references)
    for role, scale in SCALES.items():
        phases = []
        for reference in references:
            energy = {"screening": -3.0, "reference": -4.0}[role] * len(reference.crystal)
            evaluation = Evaluation(scale, reference.crystal, energy, converged=True, seconds=2.0)
            store.add_reference_evaluation(reference.id, role, evaluation)
            phases.append(
                Phase(reference.id, reference.crystal.composition.get_el_amt_dict(), energy, scale, reference.crystal)
            )
        campaign.hulls[role] = Hull(scale).add(phases)
        store.add_phases(role, campaign.hulls[role], phases, None)
    for round, targets in enumerate(campaign.targets()):
        store.add_targets(targets, round)
        _insert(store, campaign.round(round, targets))
    store.set_state("interrupted", "invented")
    store.close()


def config_of(run_dir: Path, seed: int) -> CampaignConfig:
    """Return the configuration of a campaign that could have come so far."""
    emt = {"name": "emt"}
    return CampaignConfig.model_validate(
        {
            "name": "large",
            "seed": seed,
            "run_dir": run_dir,
            "campaign": {
                "chemical_space": "-".join(ELEMENTS),
                "rounds": ROUNDS,
                "stable_threshold": THRESHOLD,
                "metastable_threshold": METASTABLE,
                "budget": {"reference_calls": 10_000},
            },
            "oracle": {"screening": emt, "reference": emt},
            "generator": {"name": "random_search"},
            "agent": {"name": "greedy"},
            "references": {"source": "elements"},
        }
    )


def _insert(store: Store, rows: Iterator[Base]) -> None:
    batches: dict[type[Base], list[dict[str, Any]]] = {}
    for row in rows:
        values = {column.key: getattr(row, column.key) for column in row.__mapper__.column_attrs}
        values["campaign_id"] = store.campaign_id
        batches.setdefault(type(row), []).append({key: value for key, value in values.items() if key != "id" or value})
    with store.engine.begin() as connection:
        for table in (CandidateRow, TransitionRow, EvaluationRow, LedgerRow, PhaseRow, HullVersionRow, StepRow):
            for start in range(0, len(batches.get(table, [])), BATCH):
                connection.execute(insert(table), batches[table][start : start + BATCH])


class _Rows:
    """Makes the rows of one round after the other."""

    def __init__(self, model: PairModel, rng: np.random.Generator, n_candidates: int) -> None:
        self._model = model
        self._rng = rng
        self._per_round = max(1, n_candidates // ROUNDS // SAMPLES_PER_TARGET)
        self._time = START
        self._waiting = 0
        self.hulls: dict[str, Hull] = {}

    def targets(self) -> Iterator[list[TargetRecord]]:
        for round in range(ROUNDS):
            records = []
            for index in range(self._per_round):
                counts = self._rng.integers(0, 4, len(ELEMENTS))
                counts[self._rng.integers(len(ELEMENTS))] += 1
                composition = {symbol: int(n) for symbol, n in zip(ELEMENTS, counts, strict=True) if n}
                target = Target(SAMPLES_PER_TARGET, composition, reason="invented")
                records.append(TargetRecord(f"r{round:02d}-t{index:04d}", round, index, target))
            yield records

    def round(self, round: int, targets: list[TargetRecord]) -> Iterator[Base]:
        for record in targets:
            composition = record.target.composition or {}
            counts = np.array([composition.get(symbol, 0) for symbol in ELEMENTS])
            for sample in range(SAMPLES_PER_TARGET):
                self._time += SECONDS_PER_CANDIDATE
                yield from self._candidate(f"{record.id}-s{sample:02d}", round, record.id, sample, counts)
        for step in ("proposed", "screened", "selected", "computed", "judged", "learned")[1:]:
            yield StepRow(round=round, step=step, seconds=10.0, time=self._time)

    def _candidate(self, id: str, round: int, target: str, sample: int, counts: np.ndarray) -> Iterator[Base]:
        crystal = crystal_of(counts, self._rng)
        screening, reference = self._model.energies(counts, self._rng)
        composition = crystal.composition.get_el_amt_dict()
        fate = self._rng.choice(
            ["rejected", "failed", "passed over", "waiting", "judged"], p=[0.25, 0.03, 0.66, 0.03, 0.03]
        )
        self._waiting += fate == "waiting"
        if fate == "waiting" and self._waiting > MAX_WAITING:
            fate = "passed over"
        path = {
            "rejected": [State.SAMPLED, State.REJECTED],
            "failed": [State.SAMPLED, State.ADMITTED, State.FAILED],
            "passed over": [State.SAMPLED, State.ADMITTED, State.SCREENED, State.PASSED_OVER],
            "waiting": [State.SAMPLED, State.ADMITTED, State.SCREENED],
            "judged": [State.SAMPLED, State.ADMITTED, State.SCREENED, State.SELECTED, State.COMPUTED, State.JUDGED],
        }[str(fate)]
        causes = {
            State.REJECTED: f"duplicate of {target}-s00",
            State.FAILED: "screening not_converged: 500 steps, largest force 0.31 eV/Å",
            State.PASSED_OVER: f"duplicate of {target}-s01",
        }
        row = CandidateRow(
            id=id,
            round=round,
            target_id=target,
            sample=sample,
            formula=crystal.formula,
            n_atoms=len(crystal),
            crystal=crystal.to_dict(),
            state=path[-1],
        )
        before = None
        for state in path:
            yield TransitionRow(
                candidate_id=id,
                from_state=before,
                to_state=state,
                cause=causes.get(state, "invented"),
                core_seconds=1.0 if state in (State.SAMPLED, State.SCREENED) else 0.0,
                time=self._time,
            )
            before = state
        for role, state, energy in (
            ("screening", State.SCREENED, screening),
            ("screening", State.FAILED, None),
            ("reference", State.COMPUTED, reference),
        ):
            if state in path:
                yield from self._evaluation(id, role, energy, crystal)
        if State.SCREENED in path:
            hull = self.hulls["screening"]
            placed = hull.decompose(composition, screening / len(crystal))
            row.screening_formation_energy_per_atom = screening / len(crystal) + 3.0
            row.screening_decomposition_energy = placed.decomposition_energy if placed else None
            row.screening_hull_version = hull.version
        if fate == "judged":
            for role, energy in (("screening", screening), ("reference", reference)):
                yield from self._grow(role, Phase(id, composition, energy, SCALES[role], crystal, "discovered"), round)
            verdict = self.hulls["reference"].decompose(composition, reference / len(crystal))
            distance = verdict.e_above_hull if verdict else 0.0
            row.stability = (
                "stable" if distance <= THRESHOLD else "metastable" if distance <= METASTABLE else "unstable"
            )
            row.e_above_hull = row.decomposition_energy = distance
            row.formation_energy_per_atom = reference / len(crystal) + 4.0
            row.decomposition = {}
            row.threshold, row.metastable_threshold = THRESHOLD, METASTABLE
            row.energy_scale_id = SCALES["reference"].id
            row.hull_version = self.hulls["reference"].version
        yield row

    def _evaluation(self, id: str, role: str, energy: float | None, crystal: Crystal) -> Iterator[Base]:
        seconds = float(self._rng.lognormal(0.0 if role == "screening" else 5.0, 0.5))
        yield EvaluationRow(
            subject_id=id,
            role=role,
            energy_scale_id=SCALES[role].id,
            energy=energy,
            converged=energy is not None,
            corrections={},
            failure_kind="not_converged" if energy is None else None,
            failure_message="500 steps, largest force 0.31 eV/Å" if energy is None else None,
            seconds=seconds,
            cores=1,
            crystal=crystal.to_dict() if energy is not None else None,
            forces=np.zeros((len(crystal), 3)).tolist() if energy is not None else None,
            stress=np.zeros((3, 3)).tolist() if energy is not None else None,
            details={"steps": 120},
            time=self._time,
        )
        yield LedgerRow(subject_id=id, role=role, kind="core_hours", amount=seconds / 3600, spent=True, time=self._time)
        if role == "reference":
            yield LedgerRow(subject_id=id, role=role, kind="reference_calls", amount=1.0, spent=True, time=self._time)

    def _grow(self, role: str, phase: Phase, round: int) -> Iterator[Base]:
        hull = self.hulls[role] = self.hulls[role].add([phase])
        yield PhaseRow(
            role=role,
            id=phase.id,
            energy_scale_id=hull.energy_scale.id,
            position=len(hull.phases) - 1,
            formula=phase.formula,
            composition=dict(phase.composition),
            energy=phase.energy,
            crystal=phase.crystal.to_dict() if phase.crystal else None,
            origin=phase.origin,
            hull_version=hull.version,
        )
        yield HullVersionRow(
            role=role,
            version=hull.version,
            energy_scale_id=hull.energy_scale.id,
            round=round,
            added=[phase.id],
            stable=[stable.id for stable in hull.stable_phases],
            time=self._time,
        )


def main() -> None:
    """Write the run folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder to make")
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(config_of(arguments.folder, arguments.seed), arguments.candidates)


if __name__ == "__main__":
    main()
