"""Known results in place of a calculation: campaigns replayed on a data set, for nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from pymatgen.core import Composition

from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.matching import CrystalIndex, Matcher
from discovery.protocols import PluginConfig
from discovery.references import element_crystals, read_csv
from discovery.sets import read_set
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind
from oracles.relax import overlap

ZERO = 0.002
"""eV/atom; a recorded form of an element up to so high is taken for its ground state."""


class _Record(NamedTuple):
    crystal: Crystal
    energy_per_atom: float


class RecordedOracle:
    """Answers from a file of known results by structure match; what is not in it fails with `not_in_database`.

    A CSV file in the format of the Materials Project sets (columns ``cif`` and ``formation_energy_per_atom``) gives
    formation energies. Elements have energy zero there by definition; those whose ground state is not in the file are
    added in their bundled forms. A JSON file of entries gives total energies, corrections included.
    """

    class Config(PluginConfig):
        """Settings of the recorded oracle."""

        path: Path = Field(description="CSV file (.csv, .csv.gz) or JSON file of entries (.json, .json.gz).")
        functional: str = Field("PBE", description="Functional of the data; entries that name their scale overrule it.")
        corrections: str = Field("", description="Correction scheme contained in the data; empty for none.")
        ltol: float = Field(0.2, gt=0, le=1, description="Length tolerance of the structure match, a fraction.")
        stol: float = Field(0.3, gt=0, le=1, description="Site tolerance, a fraction of (volume/atom)^(1/3).")
        angle_tol: float = Field(5.0, gt=0, le=30, description="Angle tolerance, degrees.")
        min_distance: float = Field(
            0.4, ge=0, lt=1, description="Closest approach of two atoms, as a fraction of their covalent radii."
        )

    def __init__(self, config: Config) -> None:
        self._config = config
        if ".json" in config.path.suffixes:
            self._records, scale = _entries(config.path)
            self.energy_scale = scale or self._scale("total energies")
        else:
            self._records = _formation_energies(config.path)
            self.energy_scale = self._scale("formation energies")
        self._elements = frozenset(int(z) for record in self._records.values() for z in record.crystal.atomic_numbers)

    def _scale(self, kind: str) -> EnergyScale:
        config = self._config
        return EnergyScale(
            code="recorded",
            version="1",
            functional=config.functional,
            potentials=f"{config.path.name} {hashlib.sha256(config.path.read_bytes()).hexdigest()}",
            settings=kind,
            corrections=config.corrections,
        )

    @cached_property
    def _index(self) -> CrystalIndex:
        """Records in order of energy, so that the lowest of several that match is the answer."""
        config = self._config
        matcher = Matcher(config.ltol, config.stol, config.angle_tol)
        lowest_first = sorted(self._records.items(), key=lambda item: (item[1].energy_per_atom, item[0]))
        return CrystalIndex(matcher, {id_: record.crystal for id_, record in lowest_first})

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:  # noqa: ARG002
        """Return one evaluation per crystal, in order; each holds the crystal of the record and its energy."""
        return [self._evaluate(crystal) for crystal in crystals]

    def _evaluate(self, crystal: Crystal) -> Evaluation:
        start = time.perf_counter()
        failure = self._reject(crystal)
        found = self._index.find(crystal) if failure is None else None
        seconds = time.perf_counter() - start
        if found is None:
            message = f"no crystal in {self._config.path} has the structure of this {crystal.formula or 'crystal'}"
            failure = failure or Failure(FailureKind.NOT_IN_DATABASE, message)
            return Evaluation(self.energy_scale, seconds=seconds, failure=failure)
        record = self._records[found]
        return Evaluation(
            self.energy_scale,
            crystal=record.crystal,
            energy=record.energy_per_atom * len(record.crystal),
            converged=True,
            seconds=seconds,
            details={"entry_id": found},
        )

    def _reject(self, crystal: Crystal) -> Failure | None:
        from ase.data import chemical_symbols

        if not len(crystal):
            return Failure(FailureKind.INVALID_INPUT, "the crystal has no atoms")
        missing = sorted(set(crystal.atomic_numbers.tolist()) - self._elements)
        if missing:
            names = ", ".join(chemical_symbols[z] for z in missing)
            message = f"{self._config.path} has no crystal with {names}"
            return Failure(FailureKind.NOT_IN_DATABASE, message)
        return overlap(crystal, self._config.min_distance)


def _formation_energies(path: Path) -> dict[str, _Record]:
    """Read a CSV file and complete it with elements of energy zero."""
    records: dict[str, _Record] = {}
    for known in read_csv(path).crystals:
        if "formation_energy_per_atom" in known.properties:
            _add(records, known.id, _Record(known.crystal, known.properties["formation_energy_per_atom"]), path)
    if not records:
        raise InvalidInputError(f"{path} has no usable row with formation_energy_per_atom; add that column")
    elements = {element.symbol for record in records.values() for element in record.crystal.composition}
    ground_states = {
        record.crystal.formula
        for record in records.values()
        if len(record.crystal.composition) == 1 and record.energy_per_atom <= ZERO
    }
    present = {element for element in elements if Composition(element).reduced_formula in ground_states}
    for element in sorted(elements - present):
        records |= {form.id: _Record(form.crystal, 0.0) for form in element_crystals(element)}
    return records


def _entries(path: Path) -> tuple[dict[str, _Record], EnergyScale | None]:
    """Read a JSON file of entries; the energy scale is that which they name."""
    records: dict[str, _Record] = {}
    scales = set()
    for member in read_set(path).members:
        if member.crystal is not None and member.energies.total is not None:
            _add(records, member.id, _Record(member.crystal, member.energies.total), path)
            scales.add(member.energies.scale)
    if not records:
        raise InvalidInputError(f"{path} has no entry with structure and energy; save ComputedStructureEntry objects")
    if len(scales) > 1:
        names = " and ".join(sorted(str(scale or "unnamed") for scale in scales))
        raise EnergyScaleError(f"{path} mixes the energy scales {names}; keep those of one in it")
    return records, scales.pop()


def _add(records: dict[str, _Record], id_: str, record: _Record, path: Path) -> None:
    if id_ in records:
        raise InvalidInputError(f"{path}: id {id_!r} occurs twice; give each crystal an id of its own")
    records[id_] = record
