"""Against what is known of simple crystals and compositions."""

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.core import Composition

from discovery.crystal import Crystal
from discovery.evaluation.fingerprints import composition_fingerprint, structure_fingerprint
from discovery.evaluation.tables import table
from discovery.evaluation.validity import charges, distances_are_valid, images_are_valid


def structure(*args, **kwargs):
    return Crystal.from_atoms(bulk(*args, **kwargs)).to_structure()


def test_coordinations_of_simple_crystals():
    # positions: likelihood of coordination 4 and 6, each followed by its order parameters
    rocksalt = structure_fingerprint(structure("NaCl", "rocksalt", a=5.64))
    diamond = structure_fingerprint(structure("Si"))
    assert len(rocksalt) == len(diamond) == 61
    motifs = table("coordination_motifs")["motifs"]
    start = {cn: sum(1 + len(motifs.get(str(n), [])) for n in range(1, cn)) for cn in (4, 6)}
    assert rocksalt[start[6]] == pytest.approx(1.0, abs=0.05)
    assert rocksalt[start[6] + 2] == pytest.approx(1.0, abs=0.05)  # octahedral
    assert diamond[start[4]] == pytest.approx(1.0, abs=0.05)
    assert diamond[start[4] + 2] == pytest.approx(1.0, abs=0.05)  # tetrahedral


def test_composition_features_are_magpies():
    scaler = table("composition_scaler")
    features = composition_fingerprint(Composition("Fe2O3")) * np.array(scaler["stds"]) + np.array(scaler["means"])
    number = features[:6]  # minimum, maximum, range, mean, mean deviation, mode of the atomic number
    mean = 0.4 * 26 + 0.6 * 8
    assert number == pytest.approx([8, 26, 18, mean, 0.4 * (26 - mean) + 0.6 * (mean - 8), 8])
    weight = features[12:18]
    assert weight[:2] == pytest.approx([15.9994, 55.845])


def crystal(symbols):
    from ase import Atoms

    positions = np.arange(len(Atoms(symbols)))[:, None] * [3.0, 0, 0]
    return Crystal.from_atoms(Atoms(symbols, positions=positions, cell=[3.0 * len(positions), 3, 3], pbc=True))


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        ("NaCl", "valid"),
        ("Na2Cl2", "valid"),
        ("NaCl2", "invalid"),
        ("Fe2O3", "valid"),
        ("MgCu2", "valid"),  # metals alone
        ("Ar", "valid"),  # an element
        ("NaAr", "invalid"),  # argon has no oxidation state
        ("Ba2O2", "valid"),
        ("BaO2", "valid"),  # O(-1)
    ],
)
def test_charges(symbols, expected):
    assert charges(crystal(symbols)) == expected


def test_distances():
    near = Crystal(np.eye(3) * 4, [[0, 0, 0], [0.1, 0, 0]], [11, 17])
    flat = Crystal(np.diag([0.3, 4, 4]), [[0, 0, 0]], [11])
    assert not distances_are_valid(near.to_structure())
    assert distances_are_valid(flat.to_structure())  # as in the original
    assert not images_are_valid(flat.to_structure())


def test_hopeless_crystals_have_no_fingerprint():
    dense = Crystal(np.eye(3) * 0.5, np.random.default_rng(0).random((8, 3)), [8] * 8)
    assert structure_fingerprint(dense.to_structure()) is None
    assert structure_fingerprint(Crystal(np.eye(3), np.zeros((0, 3)), []).to_structure()) is None
