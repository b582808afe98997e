"""UniMat's dense representation: lossless for whatever fits, clear about what does not."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Element

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.references import read_csv
from discovery.types import LabelledCrystal
from generators.data import CrystalArrays
from generators.unimat.representation import (
    TABLE_POSITIONS,
    DenseLayout,
    decode,
    encode,
    first_slots,
    from_arrays,
    occupied_slots,
    presence,
    random_rotations,
    shuffled_slots,
    smallest_layout,
)

FORMS = [(c, a) for c in ("fractional", "cartesian") for a in ("occupancy", "null_location")]
SHARED = Path(os.environ.get("DISCOVERY_SHARED", "../shared"))


def arrays(*crystals: Crystal) -> CrystalArrays:
    return CrystalArrays.from_crystals([LabelledCrystal(crystal) for crystal in crystals])


def atoms(data: CrystalArrays, index: int) -> np.ndarray:
    """Rows (Z, x, y, z) of one crystal; coordinates within 1e-9 of 1 count as 0, sorted."""
    one = data.take([index])
    frac = np.round(one.frac, 9) % 1.0
    rows = np.column_stack([one.numbers, frac])
    return rows[np.lexsort(rows.T[::-1])]


def assert_same(first: CrystalArrays, second: CrystalArrays) -> None:
    np.testing.assert_array_equal(first.n_atoms, second.n_atoms)
    np.testing.assert_allclose(first.lattice, second.lattice, atol=1e-12)
    for index in range(len(first)):
        np.testing.assert_allclose(atoms(first, index), atoms(second, index), atol=2e-9)


@st.composite
def crystals(draw: st.DrawFn) -> Crystal:
    numbers = draw(st.lists(st.integers(1, 118), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lattice = 6 * np.eye(3) + rng.uniform(-2, 2, (3, 3))
    frac = draw(st.sampled_from([rng.random((len(numbers), 3)), rng.integers(0, 4, (len(numbers), 3)) / 4]))
    return Crystal(lattice, frac, numbers)


@settings(max_examples=60, deadline=None)
@given(crystal=crystals(), form=st.sampled_from(FORMS))
def test_round_trip_is_lossless(crystal: Crystal, form: tuple[str, str]):
    data = arrays(crystal)
    layout = DenseLayout(12, coordinates=form[0], absence=form[1])
    dense = from_arrays(data, layout)
    assert dense.shape == (1, 12, 9, 18, layout.channels)
    assert_same(decode(dense, torch.from_numpy(data.lattice), layout), data)


@settings(max_examples=30, deadline=None)
@given(crystal=crystals(), form=st.sampled_from(FORMS), seed=st.integers(0, 1000))
def test_round_trip_survives_shuffled_slots_and_the_smallest_table(crystal: Crystal, form: tuple[str, str], seed: int):
    data = arrays(crystal)
    smallest = smallest_layout(data)
    layout = smallest_layout(data, slots=smallest.slots + 2, coordinates=form[0], absence=form[1])
    numbers, frac = (torch.from_numpy(array) for array in data.padded())
    slots = shuffled_slots(numbers, layout, torch.Generator().manual_seed(seed))
    lattice = torch.from_numpy(data.lattice)
    dense = encode(numbers, frac, lattice, slots, layout)
    assert_same(decode(dense, lattice, layout), data)
    assert torch.equal(presence(dense, layout), occupied_slots(numbers, slots, layout))


@pytest.mark.parametrize(("coordinates", "absence"), FORMS)
@pytest.mark.parametrize("name", ["perov_5/test", "carbon_24/test", "mp_20_bt/test", "mpts_52/val"])
def test_round_trip_of_real_crystals(real_crystals, name: str, coordinates: str, absence: str):
    data = real_crystals(name)
    layout = smallest_layout(data, coordinates=coordinates, absence=absence)
    for first in range(0, len(data), 100):
        part = data.take(range(first, min(first + 100, len(data))))
        assert_same(decode(from_arrays(part, layout), torch.from_numpy(part.lattice), layout), part)


@pytest.fixture(scope="module")
def real_crystals():
    """The first hundred crystals of a data file."""
    cache: dict[str, CrystalArrays] = {}

    def read(name: str) -> CrystalArrays:
        path = SHARED / "data" / f"{name}.csv.gz"
        if not path.exists():
            pytest.skip(f"needs {path}; set DISCOVERY_SHARED to the folder with the data")
        if name not in cache:
            cache[name] = arrays(*(known.crystal for known in read_csv(path, limit=100).crystals))
        return cache[name]

    return read


def test_null_location_form_is_the_papers():
    rocksalt = Crystal(2.8 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), [[0.25, 0, 0], [0.5, 0.5, 0.75]], [11, 17])
    dense = from_arrays(arrays(rocksalt), DenseLayout(20, absence="null_location"))[0]
    assert dense.shape == (20, 9, 18, 3)
    assert dense[0, 2, 0].tolist() == [0.25, 0, 0]
    assert dense[0, 2, 16].tolist() == [0.5, 0.5, 0.75]
    assert (dense == -1).all(-1).sum() == 20 * 9 * 18 - 2


def test_an_atom_at_the_origin_is_no_empty_slot():
    for coordinates, absence in FORMS:
        layout = DenseLayout(1, coordinates=coordinates, absence=absence)
        dense = from_arrays(arrays(Crystal(3 * np.eye(3), [[0, 0, 0]], [29])), layout)
        assert presence(dense, layout).sum() == 1


def test_one_element_needs_one_place():
    diamond = Crystal(3.567 / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), [[0, 0, 0], [0.25] * 3], [6, 6])
    layout = smallest_layout(arrays(diamond))
    assert layout.shape == (2, 1, 1)
    assert layout.atomic_numbers.tolist() == [[6]]


def test_sub_table_holds_the_elements_of_its_rows_and_columns():
    layout = DenseLayout(2, periods=(2, 3, 8), groups=(1, 2, 3, 17))
    expected = {"Li", "Be", "F", "Na", "Mg", "Cl", "La", "Lu"}
    assert {Element.from_Z(int(z)).symbol for z in layout.atomic_numbers.ravel() if z} == expected
    for z in layout.atomic_numbers[layout.atomic_numbers > 0]:
        row, column = layout.positions[z]
        assert layout.atomic_numbers[row, column] == z
    assert (DenseLayout(1).positions[1:] == TABLE_POSITIONS[1:]).all()


@pytest.mark.parametrize(
    ("options", "numbers", "message"),
    [
        ({"slots": 2}, [8, 8, 8], "3 atoms of atomic number 8, more than the 2 slots"),
        ({"slots": 2, "groups": (1, 2)}, [11, 17], "atomic number 17 is outside"),
        ({"slots": 2, "coordinates": "cartesian", "radius": 3.0}, [11], "raise radius"),
    ],
)
def test_what_does_not_fit_is_named(options, numbers, message):
    crystal = Crystal(4 * np.eye(3), np.arange(3 * len(numbers)).reshape(-1, 3) / 10, numbers)
    small = Crystal(2 * np.eye(3), [[0, 0, 0]], [3])
    with pytest.raises(InvalidInputError, match=f"crystal 1 .*{message}"):
        from_arrays(arrays(small, crystal), DenseLayout(**options))


@pytest.mark.parametrize("options", [{"slots": 0}, {"slots": 1, "periods": (0,)}, {"slots": 1, "groups": (2, 2)}])
def test_impossible_layouts_are_refused(options):
    with pytest.raises(InvalidInputError):
        DenseLayout(**options)


def test_slots_are_shuffled_uniformly():
    numbers = torch.tensor([[8, 8, 22, 0]]).repeat(6000, 1)
    slots = shuffled_slots(numbers, DenseLayout(3), torch.Generator().manual_seed(0))
    assert (slots[:, 0] != slots[:, 1]).all()
    pairs = torch.bincount(slots[:, 0] * 3 + slots[:, 1], minlength=9)[[1, 2, 3, 5, 6, 7]]
    single = torch.bincount(slots[:, 2], minlength=3)
    assert (pairs - 1000).abs().max() < 5 * np.sqrt(1000)
    assert (single - 2000).abs().max() < 5 * np.sqrt(2000)


def test_a_rotated_crystal_is_the_same_crystal():
    rng = np.random.default_rng(3)
    crystal = Crystal(5 * np.eye(3) + rng.uniform(-1, 1, (3, 3)), rng.random((4, 3)), [12, 12, 14, 8])
    data = arrays(crystal)
    layout = DenseLayout(2, coordinates="cartesian")
    rotation = random_rotations(1, torch.Generator().manual_seed(0)).double()[0]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-6, rtol=0)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0, abs=1e-6)
    dense = from_arrays(data, layout)
    rotated = torch.cat([(dense[..., :3] @ rotation), dense[..., 3:]], dim=-1)
    back = decode(rotated, torch.from_numpy(data.lattice) @ rotation, layout)
    again = Crystal(back.lattice[0], back.frac, back.numbers)
    assert not np.allclose(again.lattice, crystal.lattice, atol=0.1)
    rms = StructureMatcher(scale=False).get_rms_dist(again.to_structure(), crystal.to_structure())
    assert rms is not None
    assert rms[0] < 1e-5


def test_first_slots_count_the_atoms_of_an_element():
    assert first_slots(torch.tensor([[8, 22, 8, 8, 20]])).tolist() == [[0, 0, 1, 2, 0]]
