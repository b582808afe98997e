"""What every registered oracle must do, whatever computes its energies."""

import csv
import json
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, make_supercell
from pydantic import ValidationError

from discovery.crystal import Crystal
from discovery.protocols import Oracle
from discovery.references import read_csv
from discovery.types import Evaluation, FailureKind


@dataclass(frozen=True)
class Case:
    """How one oracle is tried: a crystal it knows, and settings that make it quick."""

    crystal: Crystal
    config: dict[str, Any] = field(default_factory=dict)
    as_given: dict[str, Any] = field(default_factory=dict)
    """Settings that keep the oracle from changing the crystal's cell."""
    computes: bool = True
    """Whether it computes what it is given, with forces and stress, rather than look it up."""
    unknown: FailureKind = FailureKind.INVALID_INPUT
    """Failure of a crystal with an element that the oracle knows nothing of."""


def distorted(atoms: Any, displacement: float = 0.08) -> Crystal:
    """Return `atoms` with every symmetry broken, so that no force or stress component vanishes."""
    rng = np.random.default_rng(3)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * symmetric(rng)), scale_atoms=True)
    atoms.positions += displacement * rng.standard_normal((len(atoms), 3))
    return Crystal.from_atoms(atoms)


def symmetric(rng: np.random.Generator) -> np.ndarray:
    matrix = rng.standard_normal((3, 3))
    return (matrix + matrix.T) / 2


ALLOY = bulk("Cu", cubic=True)
ALLOY.symbols[:2] = "Au"
ALLOY.set_cell(ALLOY.cell * 1.05, scale_atoms=True)
SALT = distorted(bulk("NaCl", "rocksalt", a=5.7))
SILICON = distorted(bulk("Si", a=5.47))
COARSE = {"cutoff": 300, "k_density": 1, "smearing": 0.02}
SLOW = ("gpaw", "abinit", "espresso", "sevennet")
CASES = {
    "emt": Case(distorted(ALLOY)),
    "chgnet": Case(SALT),
    "matgl": Case(SALT),
    "sevennet": Case(SALT),
    "gpaw": Case(SILICON, {**COARSE, "energy_tolerance": 1e-7}, {"symprec": None}),
    "abinit": Case(SILICON, {**COARSE, "residual": 1e-9}, {"symprec": None}),
    "espresso": Case(SILICON, {**COARSE, "energy_tolerance": 1e-8}, {"symprec": None}),
    "recorded": Case(SALT, computes=False, unknown=FailureKind.NOT_IN_DATABASE),
    "cached": Case(distorted(ALLOY), {"oracle": {"name": "emt", "relax": False}}, computes=False),
}
UNTRIED = {"none", "vasp"}
"""The oracle without an opinion, and one that needs a licensed program; tested in test_none.py and test_vasp.py."""
REGISTERED = sorted(
    (entry for entry in entry_points(group="discovery.oracles") if entry.name not in UNTRIED),
    key=lambda entry: entry.name,
)
OTHERS = (distorted(bulk("Cu", cubic=True)), distorted(ALLOY.copy()), SALT, SILICON)
"""Oracles of other packages are tried, with their default settings, on the first of these that they know."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] if entry.name in SLOW else [])
        for entry in REGISTERED
    ],
)
def entry(request: pytest.FixtureRequest) -> Any:
    if request.param.name in ("gpaw", "abinit", "sevennet"):
        request.getfixturevalue(f"{request.param.name}_installed")
    return request.param


@pytest.fixture(scope="module")
def case(entry: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if entry.name not in CASES:
        oracle = build(entry, Case(SALT), relax=False)
        known = (crystal for crystal, tried in zip(OTHERS, oracle.evaluate(OTHERS), strict=True) if tried.ok)
        return Case(next(known))
    case = CASES[entry.name]
    if entry.name == "recorded":
        path = tmp_path_factory.mktemp("recorded") / "known.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["material_id", "cif", "formation_energy_per_atom"])
            rows.writerow(["salt", case.crystal.to_structure().to(fmt="cif"), -2.1])
        return replace(case, crystal=read_csv(path).crystals[0].crystal, config={"path": path})
    if entry.name == "espresso":
        case.config["pseudopotentials"] = request.getfixturevalue("pseudopotentials")
    if entry.name == "cached":
        return replace(case, config=case.config | {"path": tmp_path_factory.mktemp("cached") / "answers.sqlite"})
    if entry.name == "matgl":
        case.config["model"] = request.getfixturevalue("matgl_model")
    return case


def build(entry: Any, case: Case, **settings: Any) -> Oracle:
    """Construct the oracle; settings of a relaxation mean nothing to one that does not compute."""
    plugin = entry.load()
    return plugin(plugin.Config.model_validate(case.config | (settings if case.computes else {})))


@pytest.fixture(scope="module")
def static(entry: Any, case: Case) -> Oracle:
    return build(entry, case, relax=False)


@pytest.fixture(scope="module")
def as_given(entry: Any, case: Case) -> Oracle:
    return build(entry, case, relax=False, **case.as_given)


@pytest.fixture(scope="module")
def base(as_given: Oracle, case: Case) -> Evaluation:
    (evaluation,) = as_given.evaluate([case.crystal])
    assert evaluation.ok, evaluation.failure
    return evaluation


def test_every_oracle_of_this_project_has_a_case() -> None:
    own = {entry.name for entry in REGISTERED if entry.value.startswith("oracles.")}
    assert own == set(CASES)


def test_it_is_an_oracle(static: Oracle) -> None:
    assert isinstance(static, Oracle)


def test_unknown_settings_are_refused_and_all_are_described(entry: Any) -> None:
    config = entry.load().Config
    with pytest.raises(ValidationError, match="extra"):
        config.model_validate({"fmaks": 0.1})
    assert all(model_field.description for model_field in config.model_fields.values())


def test_no_crystals_give_no_evaluations(static: Oracle) -> None:
    assert static.evaluate([]) == []


def test_failures_stay_in_their_place(static: Oracle, case: Case) -> None:
    """A batch answers in order; one bad crystal takes nothing else with it."""
    good = case.crystal
    overlapping = Crystal(good.lattice, np.zeros_like(good.frac_coords) + 0.5, good.atomic_numbers)
    collapsed = Crystal(good.lattice * 0.1, good.frac_coords, good.atomic_numbers)
    flat = Crystal(good.lattice * [[1], [1], [0]], good.frac_coords, good.atomic_numbers)
    unknown = Crystal(good.lattice, good.frac_coords, np.full(len(good), 118))
    empty = Crystal(good.lattice, np.zeros((0, 3)), np.zeros(0))
    batch = [overlapping, good, collapsed, unknown, flat, empty]
    kinds = [e.failure.kind if e.failure else None for e in static.evaluate(batch)]
    bad = FailureKind.UNPHYSICAL
    assert kinds == [bad, None, bad, case.unknown, bad, FailureKind.INVALID_INPUT]


def test_unknown_elements_are_named(static: Oracle, case: Case) -> None:
    numbers = np.array(case.crystal.atomic_numbers)
    numbers[0] = 118
    (evaluation,) = static.evaluate([Crystal(case.crystal.lattice, case.crystal.frac_coords, numbers)])
    assert evaluation.failure is not None
    assert "Og" in evaluation.failure.message
    assert evaluation.energy is None
    assert evaluation.crystal is None


def test_evaluation_is_complete(base: Evaluation, case: Case) -> None:
    n = len(case.crystal)
    assert base.crystal == case.crystal
    assert base.converged
    if not case.computes:
        return
    assert base.forces is not None
    assert base.stress is not None
    assert base.forces.shape == (n, 3)
    assert base.stress.shape == (3, 3)
    np.testing.assert_allclose(base.stress, base.stress.T)
    assert base.seconds > 0
    assert base.core_hours > 0


def test_json_round_trip(base: Evaluation) -> None:
    again = Evaluation.from_dict(json.loads(json.dumps(base.to_dict())))
    assert again.to_dict() == base.to_dict()
    assert again.energy_scale == base.energy_scale
    assert again.crystal == base.crystal
    np.testing.assert_array_equal(again.forces, base.forces)


def test_same_input_gives_same_energy(as_given: Oracle, base: Evaluation, case: Case) -> None:
    assert as_given.evaluate([case.crystal])[0].energy == pytest.approx(base.energy, abs=1e-6)


def test_energy_is_extensive(static: Oracle, case: Case) -> None:
    supercell = Crystal.from_atoms(make_supercell(case.crystal.to_atoms(), [[2, 0, 0], [0, 1, 0], [0, 1, 1]]))
    single, double = static.evaluate([case.crystal, supercell])
    assert double.energy_per_atom == pytest.approx(single.energy_per_atom, abs=2e-4)


def test_energy_is_invariant(as_given: Oracle, base: Evaluation, case: Case) -> None:
    """Origin, orientation and the order of atoms mean nothing; forces and stress turn with the crystal."""
    rng = np.random.default_rng(5)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    rotation *= np.linalg.det(rotation)
    order = rng.permutation(len(case.crystal))
    moved = Crystal(
        case.crystal.lattice @ rotation.T,
        (case.crystal.frac_coords + np.array([0.3, 0.7, 0.1]))[order],
        case.crystal.atomic_numbers[order],
    )
    (evaluation,) = as_given.evaluate([moved])
    assert base.energy is not None
    assert evaluation.energy == pytest.approx(base.energy, abs=1e-3 * len(moved))
    if not case.computes:
        return
    assert base.forces is not None
    assert base.stress is not None
    np.testing.assert_allclose(evaluation.forces, (base.forces @ rotation.T)[order], atol=0.02)
    np.testing.assert_allclose(evaluation.stress, rotation @ base.stress @ rotation.T, atol=1e-3)


def test_forces_are_the_gradient_of_the_energy(as_given: Oracle, base: Evaluation, case: Case) -> None:
    """Central difference along one random displacement of all atoms."""
    if not case.computes:
        pytest.skip("it looks results up and gives no forces and no stress")
    rng = np.random.default_rng(7)
    direction = rng.standard_normal((len(case.crystal), 3))
    direction /= np.linalg.norm(direction)
    step = 0.02
    images = []
    for sign in (1, -1):
        atoms = case.crystal.to_atoms()
        atoms.positions += sign * step * direction
        images.append(Crystal.from_atoms(atoms))
    plus, minus = as_given.evaluate(images)
    assert base.forces is not None
    assert plus.energy is not None
    assert minus.energy is not None
    slope = (plus.energy - minus.energy) / (2 * step)
    assert abs(slope) > 0.05
    assert slope == pytest.approx(-(base.forces * direction).sum(), rel=0.02, abs=5e-3)


def test_stress_is_the_gradient_of_the_energy(as_given: Oracle, base: Evaluation, case: Case) -> None:
    """Central difference along one random strain: dE/dε = V σ:ε."""
    if not case.computes:
        pytest.skip("it looks results up and gives no forces and no stress")
    strain = symmetric(np.random.default_rng(11))
    strain /= np.linalg.norm(strain)
    step = 0.005
    images = [
        Crystal(
            case.crystal.lattice @ (np.eye(3) + sign * step * strain),
            case.crystal.frac_coords,
            case.crystal.atomic_numbers,
        )
        for sign in (1, -1)
    ]
    plus, minus = as_given.evaluate(images)
    assert base.stress is not None
    assert plus.energy is not None
    assert minus.energy is not None
    slope = (plus.energy - minus.energy) / (2 * step) / case.crystal.volume
    assert abs(slope) > 2e-3
    assert slope == pytest.approx((base.stress * strain).sum(), rel=0.05, abs=5e-4)


def test_energy_scale_is_stable(entry: Any, case: Case, static: Oracle) -> None:
    """Two instances agree; how far a relaxation goes does not change what energies mean."""
    again = build(entry, case, relax=True, fmax=0.07, max_seconds=77)
    assert again.energy_scale == static.energy_scale
    assert again.energy_scale.id == static.energy_scale.id
