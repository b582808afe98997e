"""SevenNet as its own package computes it, and files that must not be trusted."""

import pickle

import numpy as np
import pytest
import torch
from ase.build import bulk

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError, MissingDependencyError
from oracles.sevennet import SevenNetOracle

pytest.importorskip("sevenn", reason="SevenNet is not installed; `pip install 'discovery-engine[sevennet]'`")


def checkpoint(name: str) -> str:
    from sevenn import _const

    return getattr(_const, name)


@pytest.fixture(scope="module")
def crystals() -> list[Crystal]:
    """Crystals of several sizes without symmetry, and an atom that sees no other."""
    rng = np.random.default_rng(0)
    found = []
    for atoms in (bulk("NaCl", "rocksalt", a=5.7), bulk("Si", cubic=True), bulk("Ni"), bulk("Na", "sc", a=9.0)):
        strain = 0.03 * rng.standard_normal((3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.positions += 0.1 * rng.standard_normal((len(atoms), 3))
        found.append(Crystal.from_atoms(atoms))
    return found


@pytest.mark.parametrize(
    ("model", "modal"),
    [
        ("7net-0", None),
        pytest.param("7net-l3i5", None, marks=pytest.mark.slow),
        pytest.param("SEVENNET_MF_0", "R2SCAN", marks=pytest.mark.slow),
        pytest.param("SEVENNET_MF_0", "PBE", marks=pytest.mark.slow),
    ],
)
def test_it_agrees_with_the_calculator_of_its_package(crystals, model: str, modal: str | None) -> None:
    from sevenn.calculator import SevenNetCalculator

    path = model if modal is None else checkpoint(model)
    labels = {"modal": modal, "functional": modal} if modal else {}
    oracle = SevenNetOracle(SevenNetOracle.Config(model=path, relax=False, **labels))
    calculator = SevenNetCalculator(path, device="cpu", modal=modal)
    for crystal, evaluation in zip(crystals, oracle.evaluate(crystals), strict=True):
        atoms = crystal.to_atoms()
        atoms.calc = calculator
        assert evaluation.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5 * len(atoms))
        np.testing.assert_allclose(evaluation.forces, atoms.get_forces(), atol=2e-5)
        np.testing.assert_allclose(evaluation.stress, atoms.get_stress(voigt=False), atol=2e-6)
    assert oracle.energy_scale.settings == ("" if modal is None else f"modal {modal}")


def test_energies_contain_no_corrections() -> None:
    """NaCl is −3.358 eV/atom in uncorrected PBE of VASP (MatPES); the MP2020 correction would add −0.307."""
    oracle = SevenNetOracle(SevenNetOracle.Config(relax=False))
    (evaluation,) = oracle.evaluate([Crystal.from_atoms(bulk("NaCl", "rocksalt", a=5.69))])
    assert evaluation.energy_per_atom == pytest.approx(-3.358, abs=0.05)
    assert oracle.energy_scale.corrections == ""


class _Code:
    def __reduce__(self):
        return print, ("this ran",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"config": _Code(), "model_state_dict": {}}, path)
    with pytest.raises(InvalidInputError, match=r"evil\.pth is not a checkpoint of SevenNet"):
        SevenNetOracle(SevenNetOracle.Config(model=str(path), functional="PBE"))
    path.write_bytes(pickle.dumps(_Code()))
    with pytest.raises(InvalidInputError, match=r"evil\.pth is not a checkpoint of SevenNet"):
        SevenNetOracle(SevenNetOracle.Config(model=str(path), functional="PBE"))
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "7net-omni"}, MissingDependencyError, "github.com/MDIL-SNU/SevenNet/releases"),
        ({"model": "SEVENNET_l3i5"}, InvalidInputError, "set `functional`"),
        ({"modal": "mpa"}, InvalidInputError, "must be unset"),
        ({"model": "SEVENNET_MF_0", "functional": "PBE"}, InvalidInputError, "must be one of R2SCAN, PBE"),
    ],
)
def test_what_cannot_be_used_is_explained(settings, error, message: str) -> None:
    if settings.get("model", "").startswith("SEVENNET"):
        settings = settings | {"model": checkpoint(settings["model"])}
    with pytest.raises(error, match=message):
        SevenNetOracle(SevenNetOracle.Config(**settings))
