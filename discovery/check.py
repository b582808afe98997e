"""Checks of an oracle: does it know known solids, and is what it says consistent with itself.

A force field whose file loads without complaint may still be wrong, and so may a DFT code with a bad setting. Every
oracle is treated alike, through its protocol: it is asked for energies of crystals, most of them not relaxed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.polynomial import Polynomial
from pydantic import BaseModel, ConfigDict

from discovery.config import OracleChoice
from discovery.crystal import Crystal
from discovery.errors import ConfigError
from discovery.protocols import Oracle
from discovery.types import EnergyScale, Evaluation, Failure, FailureKind

LATTICE_TOLERANCE = 2.0
"""%; PBE codes agree within 0.3 %, good universal force fields follow PBE within 1.5 %."""

BULK_MODULUS_TOLERANCE = 35.0
"""%; universal force fields are too soft by up to 30 % (Deng et al., npj Computational Materials 11, 9, 2025)."""

FORMATION_TOLERANCE = 0.1
"""eV/atom."""

ROUGHNESS_TOLERANCE = 0.002
"""eV/atom; largest deviation of an energy–volume curve from its Birch–Murnaghan fit."""

RELAXATION_TOLERANCE = 0.5
"""%; lattice constant of a relaxed crystal against the minimum of its energy–volume curve."""

FORCE_TOLERANCE = 0.02
"""eV/Å, or the same as a fraction if that is more."""

STRESS_TOLERANCE = 0.05
"""As a fraction, or 1/100 of it in eV/Å³ (0.08 GPa) if that is more."""

INVARIANCE_TOLERANCE = 0.001
"""eV/atom, eV/Å³, and 1/20 of it in eV/Å."""

GPA = 1 / 160.21766208
"""1 GPa in eV/Å³."""

STRETCHES = np.linspace(0.94, 1.06, 7)
"""Volumes of an energy–volume curve, relative to the reference."""

PROBES = 2
"""Distorted crystals on which derivatives and invariances are tested."""

SLOW = 1.0
"""s; an oracle whose static calculations take longer is checked on one known solid before a campaign, not on all."""

ReferenceSet = Literal["PBE", "experiment"]

Extent = Literal["full", "quick", "launch"]
"""How much is checked: all; fewer solids and one distorted crystal; that, but of slow oracles one known solid alone."""


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reference(_Values):
    """Published properties of a solid: Å³/atom, GPa and eV/atom."""

    volume_per_atom: float
    bulk_modulus: float | None = None
    formation_energy_per_atom: float | None = None
    source: str


class KnownSolid(_Values):
    """A cubic crystal without internal freedom, so that its volume says all.

    In prototype L1_2 the first species is the minority.
    """

    species: tuple[str, ...]
    prototype: Literal["fcc", "diamond", "rocksalt", "zincblende", "cesiumchloride", "L1_2"]
    quick: bool
    references: dict[ReferenceSet, Reference]

    @cached_property
    def formula(self) -> str:
        """Reduced formula."""
        return self.crystal(20.0).formula

    def crystal(self, volume_per_atom: float) -> Crystal:
        """Return the crystal with a volume given in Å³/atom."""
        from ase.build import bulk

        if self.prototype == "L1_2":
            atoms = bulk(self.species[1], "fcc", a=1.0, cubic=True)
            atoms.symbols[0] = self.species[0]
        else:
            atoms = bulk("".join(self.species), self.prototype, a=1.0)
        atoms.set_cell(atoms.cell * (volume_per_atom * len(atoms) / atoms.cell.volume) ** (1 / 3), scale_atoms=True)
        return Crystal.from_atoms(atoms)


class KnownSolids(_Values):
    """The published data that oracles are compared with."""

    format: Literal["discovery.check/1"]
    units: dict[str, str]
    sources: dict[str, str]
    solids: tuple[KnownSolid, ...]


def known_solids() -> KnownSolids:
    """Return the published data that comes with the package."""
    return KnownSolids.model_validate_json(
        resources.files("discovery").joinpath("known_solids.json").read_text("utf-8")
    )


@dataclass(frozen=True)
class Check:
    """One comparison; it passes if `deviation`, in `unit`, is at most `tolerance`.

    `value` and `expected` are in the unit of the property. `problem` says why there is no value.
    """

    quantity: str
    subject: str
    deviation: float | None
    tolerance: float
    unit: str
    value: float | None = None
    expected: float | None = None
    source: str = ""
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the deviation is known and within tolerance."""
        return self.deviation is not None and abs(self.deviation) <= self.tolerance


@dataclass(frozen=True)
class CheckReport:
    """All checks of one oracle.

    ``seconds_per_atom`` is the median time of a static calculation of a known solid.
    """

    oracle: dict[str, Any]
    energy_scale: EnergyScale
    references: ReferenceSet
    extent: Extent
    checks: tuple[Check, ...]
    left_out: tuple[str, ...]
    seconds_per_atom: float | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all checks passed, at least one of them a comparison with a known solid."""
        compared = any(check.quantity == "lattice constant" for check in self.checks)
        return compared and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "format": "discovery.check_report/1",
            "passed": self.passed,
            "oracle": self.oracle,
            "energy_scale": asdict(self.energy_scale) | {"id": self.energy_scale.id},
            "references": self.references,
            "extent": self.extent,
            "checks": [asdict(check) | {"passed": check.passed} for check in self.checks],
            "left_out": list(self.left_out),
            "seconds_per_atom": self.seconds_per_atom,
            "seconds": self.seconds,
        }


def computes(choice: OracleChoice) -> bool:
    """Whether the oracle can be asked for the energy of a crystal as it is, and so be checked at all."""
    return "relax" in type(choice.options).model_fields


def check(
    choice: OracleChoice,
    *,
    extent: Extent = "full",
    elements: Collection[str] = (),
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Compare an oracle with published data and with itself.

    Parameters
    ----------
    choice
        The oracle. Its option ``relax`` is set as each check needs it; false leaves the relaxation unchecked.
    extent
        How much is checked.
    elements
        Known solids of these elements come first, whatever the extent.
    folder
        Where an external program keeps its files; what it finds finished there is not computed again.
    progress
        Told what is computed next.

    Raises
    ------
    ConfigError
        If the oracle has no option ``relax``, so that it cannot compute a crystal as it is given.
    """
    start = time.perf_counter()
    run = _Run(choice, extent, frozenset(elements), folder, progress)
    checks = tuple(run.checks())
    return CheckReport(
        oracle=choice.model_dump(mode="json"),
        energy_scale=run.static.energy_scale,
        references=run.reference_set,
        extent=extent,
        checks=checks,
        left_out=tuple(run.left_out),
        seconds_per_atom=float(np.median(run.seconds_per_atom)) if run.seconds_per_atom else None,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class EquationOfState:
    """Third-order Birch–Murnaghan fit of energy (eV/atom) over volume (Å³/atom).

    F. Birch, Phys. Rev. 71, 809 (1947); a cubic polynomial in V^(−2/3).
    """

    volume: float
    energy: float
    bulk_modulus: float
    roughness: float

    @classmethod
    def fit(cls, volumes: np.ndarray, energies: np.ndarray) -> EquationOfState | None:
        """Fit; None without a minimum between the smallest volume less 20 % and the largest plus 20 %."""
        curve = Polynomial.fit(volumes ** (-2 / 3), energies, 3)
        slope, curvature = curve.deriv(), curve.deriv(2)
        low, high = 1.2 * volumes.max(), 0.8 * volumes.min()
        for root in slope.roots():
            x = float(root.real)
            if abs(root.imag) < 1e-9 and low ** (-2 / 3) <= x <= high ** (-2 / 3) and curvature(x) > 0:
                volume = x**-1.5
                return cls(
                    volume=volume,
                    energy=float(curve(x)),
                    bulk_modulus=float(volume * curvature(x) * (2 / 3 * volume ** (-5 / 3)) ** 2),
                    roughness=float(np.abs(curve(volumes ** (-2 / 3)) - energies).max()),
                )
        return None


@dataclass
class _Run:
    """One check of one oracle."""

    choice: OracleChoice
    extent: Extent
    elements: frozenset[str]
    folder: Path | None
    progress: Callable[[str], None]
    left_out: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    seconds_per_atom: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not computes(self.choice):
            raise ConfigError(
                f"the oracle {self.choice.name!r} has no option 'relax' and cannot be asked for the energy of a "
                "crystal as it is; only oracles that compute can be checked"
            )
        self._relaxes: bool = self.choice.options.model_dump()["relax"]
        self.static = self._create(relax=False)
        known = known_solids().solids
        own = [solid for solid in known if self.elements.issuperset(solid.species)]
        self.solids = own + [solid for solid in known if solid not in own and (solid.quick or self.extent == "full")]
        functional = self.static.energy_scale.functional.partition("+")[0]
        self.reference_set: ReferenceSet = "PBE" if functional == "PBE" else "experiment"

    def _create(self, *, relax: bool) -> Oracle:
        options = self.choice.options.model_copy(update={"relax": relax})
        oracle: Oracle = self.choice.model_copy(update={"options": options}).create()
        return oracle

    def checks(self) -> Iterator[Check]:
        curves: dict[str, EquationOfState] = {}
        for solid in self.solids:
            reference = solid.references.get(self.reference_set)
            if reference is None or not self._supports(solid):
                self.left_out.append(solid.formula)
                continue
            self.progress(f"energy–volume curve of {solid.formula}")
            yield from self._solid(solid, reference, curves)
            if self.extent == "launch" and self.seconds and np.median(self.seconds) > SLOW:
                return
            if self._relaxes and len(curves) == 1 and solid.formula in curves:
                self.progress(f"relaxation of {solid.formula}")
                yield self._relaxation(solid, curves[solid.formula])
        for solid in self.solids:
            if solid.formula in curves:
                yield from self._formation(solid, curves)
        for solid in self._probes():
            self.progress(f"derivatives and invariances on distorted {solid.formula}")
            yield from self._consistency(solid)

    def _supports(self, solid: KnownSolid) -> bool:
        """Whether the oracle knows the elements; what else may be wrong with it shows later."""
        (evaluation,) = self._evaluate([solid.crystal(next(iter(solid.references.values())).volume_per_atom)])
        return evaluation.failure is None or evaluation.failure.kind is not FailureKind.INVALID_INPUT

    def _evaluate(self, crystals: Sequence[Crystal]) -> list[Evaluation]:
        return self.static.evaluate(crystals, folder=self.folder)

    def _solid(self, solid: KnownSolid, reference: Reference, curves: dict[str, EquationOfState]) -> Iterator[Check]:
        volumes = STRETCHES * reference.volume_per_atom
        evaluations = self._evaluate([solid.crystal(volume) for volume in volumes])
        failed = next((evaluation.failure for evaluation in evaluations if evaluation.failure is not None), None)
        curve = None
        if failed is None:
            curve = EquationOfState.fit(volumes, np.array([each.energy_per_atom for each in evaluations]))
            self.seconds += [each.seconds for each in evaluations]
            self.seconds_per_atom += [each.seconds / len(each.crystal or ()) for each in evaluations if each.crystal]
        subject, source = solid.formula, reference.source
        if curve is None:
            problem = failed.message if failed is not None else "its energy–volume curve has no minimum"
            yield Check("lattice constant", subject, None, LATTICE_TOLERANCE, "%", source=source, problem=problem)
            return
        curves[solid.formula] = curve
        value, expected = _lattice_constant(solid, curve.volume), _lattice_constant(solid, reference.volume_per_atom)
        deviation = 100 * (value / expected - 1)
        yield Check("lattice constant", subject, deviation, LATTICE_TOLERANCE, "%", value, expected, source)
        if reference.bulk_modulus is not None:
            value, expected = curve.bulk_modulus / GPA, reference.bulk_modulus
            deviation = 100 * (value / expected - 1)
            yield Check("bulk modulus", subject, deviation, BULK_MODULUS_TOLERANCE, "%", value, expected, source)
        yield Check("smooth energy–volume curve", subject, curve.roughness, ROUGHNESS_TOLERANCE, "eV/atom")

    def _relaxation(self, solid: KnownSolid, curve: EquationOfState) -> Check:
        """Relax a crystal stretched by 2 % along every axis."""
        start = solid.crystal(curve.volume * 1.02**3)
        (evaluation,) = self._create(relax=True).evaluate([start], folder=self.folder)
        name, subject = "relaxed lattice constant", solid.formula
        if evaluation.crystal is None:
            return Check(name, subject, None, RELAXATION_TOLERANCE, "%", problem=_message(evaluation.failure))
        value = _lattice_constant(solid, evaluation.crystal.volume / len(evaluation.crystal))
        expected = _lattice_constant(solid, curve.volume)
        source = "its energy–volume curve"
        return Check(name, subject, 100 * (value / expected - 1), RELAXATION_TOLERANCE, "%", value, expected, source)

    def _formation(self, solid: KnownSolid, curves: dict[str, EquationOfState]) -> Iterator[Check]:
        reference = solid.references[self.reference_set]
        expected = reference.formation_energy_per_atom
        if expected is None or not curves.keys() >= set(solid.species):
            return
        composition = solid.crystal(reference.volume_per_atom).composition
        elements = sum(composition.get_atomic_fraction(symbol) * curves[symbol].energy for symbol in solid.species)
        value = curves[solid.formula].energy - elements
        deviation = value - expected
        yield Check(
            "formation energy",
            solid.formula,
            deviation,
            FORMATION_TOLERANCE,
            "eV/atom",
            value,
            expected,
            reference.source,
        )

    def _probes(self) -> Iterator[KnownSolid]:
        """Yield the first solids of more than one atom that the oracle supports."""
        found = 0
        for solid in known_solids().solids:
            if found == (PROBES if self.extent == "full" else 1):
                return
            if len(solid.crystal(20.0)) > 1 and self._supports(solid):
                found += 1
                yield solid

    def _consistency(self, solid: KnownSolid) -> Iterator[Check]:
        rng = np.random.default_rng(1)
        distorted = _distorted(solid.crystal(next(iter(solid.references.values())).volume_per_atom), rng)
        (base,) = self._evaluate([distorted])
        subject = f"distorted {solid.formula}"
        if base.crystal is None or base.forces is None or base.stress is None:
            problem = _message(base.failure) if base.failure is not None else "it gives no forces or no stress"
            yield Check("forces are derivatives", subject, None, FORCE_TOLERANCE, "eV/Å", problem=problem)
            return
        yield self._forces(base.crystal, base.forces, subject, rng)
        yield self._stress(base.crystal, base.stress, subject, rng)
        yield from self._invariances(distorted, base, subject, rng)

    def _forces(self, crystal: Crystal, forces: np.ndarray, subject: str, rng: np.random.Generator) -> Check:
        """Compare with a central difference along a random displacement of unit length, 0.02 Å each way."""
        step = 0.02
        direction = rng.standard_normal((len(crystal), 3)) + forces / np.linalg.norm(forces)
        direction /= np.linalg.norm(direction)
        moved = []
        for sign in (1, -1):
            atoms = crystal.to_atoms()
            atoms.positions += sign * step * direction
            moved.append(Crystal.from_atoms(atoms))
        value = -float((forces * direction).sum())
        tolerance = max(FORCE_TOLERANCE, FORCE_TOLERANCE * abs(value))
        return self._derivative(
            "forces are derivatives", subject, moved, len(crystal), 2 * step, value, tolerance, "eV/Å"
        )

    def _stress(self, crystal: Crystal, stress: np.ndarray, subject: str, rng: np.random.Generator) -> Check:
        """Compare with a central difference along a random strain ε of unit length, 0.005 each way: dE/dε = V σ:ε."""
        step = 0.005
        strain = _symmetric(rng)
        strain /= np.linalg.norm(strain)
        moved = [
            Crystal(crystal.lattice @ (np.eye(3) + sign * step * strain), crystal.frac_coords, crystal.atomic_numbers)
            for sign in (1, -1)
        ]
        value = float((stress * strain).sum())
        tolerance = max(STRESS_TOLERANCE / 100, STRESS_TOLERANCE * abs(value))
        divisor = 2 * step * crystal.volume
        return self._derivative(
            "stress is a derivative", subject, moved, len(crystal), divisor, value, tolerance, "eV/Å³"
        )

    def _derivative(
        self,
        name: str,
        subject: str,
        moved: Sequence[Crystal],
        n_atoms: int,
        divisor: float,
        value: float,
        tolerance: float,
        unit: str,
    ) -> Check:
        plus, minus = self._evaluate(moved)
        if not (plus.ok and minus.ok):
            problem = _message(plus.failure or minus.failure)
            return Check(name, subject, None, tolerance, unit, value, problem=problem)
        expected = (plus.energy_per_atom - minus.energy_per_atom) * n_atoms / divisor
        return Check(name, subject, value - expected, tolerance, unit, value, expected, "finite differences")

    def _invariances(
        self, crystal: Crystal, base: Evaluation, subject: str, rng: np.random.Generator
    ) -> Iterator[Check]:
        variants = _equivalent(crystal, rng)
        evaluations = dict(zip(variants, self._evaluate(list(variants.values())), strict=True))
        for name, other in evaluations.items():
            title = f"energy under {name}"
            if not other.ok:
                problem = _message(other.failure)
                yield Check(title, subject, None, INVARIANCE_TOLERANCE, "eV/atom", problem=problem)
                continue
            values = (other.energy_per_atom, base.energy_per_atom)
            yield Check(title, subject, values[0] - values[1], INVARIANCE_TOLERANCE, "eV/atom", *values)
        computed = [other for other in evaluations.values() if other.ok]
        forces = max((abs(_largest_force(other) - _largest_force(base)) for other in computed), default=None)
        yield Check("largest force under all of these", subject, forces, 20 * INVARIANCE_TOLERANCE, "eV/Å")
        stress = max((float(np.abs(_principal(other) - _principal(base)).max()) for other in computed), default=None)
        yield Check("principal stresses under all of these", subject, stress, INVARIANCE_TOLERANCE, "eV/Å³")


def _lattice_constant(solid: KnownSolid, volume_per_atom: float) -> float:
    """Return the edge of the conventional cubic cell in Å."""
    atoms = {"fcc": 4, "diamond": 8, "rocksalt": 8, "zincblende": 8, "cesiumchloride": 2, "L1_2": 4}[solid.prototype]
    return float((atoms * volume_per_atom) ** (1 / 3))


def _symmetric(rng: np.random.Generator) -> np.ndarray:
    matrix = rng.standard_normal((3, 3))
    return (matrix + matrix.T) / 2


def _distorted(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Return `crystal` with its cell strained by about 3 % and its atoms moved by about 0.08 Å per axis."""
    atoms = crystal.to_atoms()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * _symmetric(rng)), scale_atoms=True)
    atoms.positions += 0.08 * rng.standard_normal((len(atoms), 3))
    return Crystal.from_atoms(atoms)


def _equivalent(crystal: Crystal, rng: np.random.Generator) -> dict[str, Crystal]:
    """Return other descriptions of the same crystal by what distinguishes them."""
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    rotation *= np.linalg.det(rotation)
    lattice, frac_coords, numbers = crystal.lattice, crystal.frac_coords, crystal.atomic_numbers
    doubled = np.concatenate([frac_coords, frac_coords + np.array([1, 0, 0])]) / [2, 1, 1]
    return {
        "translation": Crystal(lattice, frac_coords + rng.random(3), numbers),
        "rotation": Crystal(lattice @ rotation.T, frac_coords, numbers),
        "another order of atoms": Crystal(lattice, frac_coords[::-1], numbers[::-1]),
        "doubling of the cell": Crystal(lattice * [[2], [1], [1]], doubled, np.tile(numbers, 2)),
    }


def _largest_force(evaluation: Evaluation) -> float:
    return float(np.linalg.norm(evaluation.forces, axis=1).max()) if evaluation.forces is not None else np.inf


def _principal(evaluation: Evaluation) -> np.ndarray:
    return np.linalg.eigvalsh(evaluation.stress) if evaluation.stress is not None else np.full(3, np.inf)


def _message(failure: Failure | None) -> str:
    return f"{failure.kind}: {failure.message}" if failure is not None else "it gives no energy"
