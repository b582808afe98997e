"""Random search against independent truth: spglib, pymatgen's distances and the volumes of known crystals."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.data import covalent_radii
from pydantic import ValidationError
from pymatgen.core import Element
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from discovery.errors import InvalidInputError
from discovery.references import read_csv
from discovery.types import Checkpoint, FailureKind, Target
from generators import random_search
from generators.random_search import RandomSearchGenerator, atomic_volume, closest_approach

SHARED = Path(os.environ.get("DISCOVERY_SHARED", "../shared"))


def generator(**options):
    return RandomSearchGenerator(RandomSearchGenerator.Config(**options))


def crystals(target, seed=0, **options):
    samples = generator(**options).sample([target], seed=seed)
    assert all(sample.crystal is not None for sample in samples), [s.failure for s in samples if s.failure]
    return [sample.crystal for sample in samples]


def separation(crystal):
    """The smallest distance over the sum of covalent radii, by pymatgen's neighbour list."""
    first, second, _, distance = crystal.to_structure().get_neighbor_list(r=6.0)
    radii = covalent_radii[crystal.atomic_numbers]
    return (distance / (radii[first] + radii[second])).min()


def test_atoms_keep_their_distance_and_the_volume_is_in_range():
    composition = {"Li": 1, "Mn": 2, "O": 4}
    usual = sum(n * atomic_volume(element) for element, n in composition.items())
    for crystal in crystals(Target(20, composition)):
        assert separation(crystal) >= 0.75 * (1 - 1e-9)
        assert 0.8 <= crystal.volume / usual <= 1.4


def test_closest_approach_agrees_with_pymatgen():
    for crystal in crystals(Target(20, {"Cs": 1, "Pb": 1, "I": 3})):
        assert closest_approach(crystal) == pytest.approx(separation(crystal))


def test_most_samples_are_symmetric_and_of_many_space_groups():
    numbers = [
        SpacegroupAnalyzer(crystal.to_structure()).get_space_group_number()
        for crystal in crystals(Target(30, {"Mg": 2, "Si": 1}))
    ]
    assert numbers.count(1) < 6
    assert len(set(numbers)) >= 10


@pytest.mark.parametrize("number", [2, 5, 12, 38, 63, 71, 69, 98, 148, 166, 167, 196, 216, 225, 227])
def test_primitive_cell_keeps_the_space_group_that_was_asked_for(number, monkeypatch):
    monkeypatch.setattr(random_search, "_compatible_groups", lambda counts: [number])
    group = random_search._group(number)
    for crystal in crystals(Target(3, {"Na": 2, "Cl": 2}), volume_factor=(1.2, 2.0)):
        found = SpacegroupAnalyzer(crystal.to_structure(), symprec=1e-3)
        asked = len(group[0].ops) // group.cellsize()
        lattice_translations = len(crystal) // len(found.find_primitive())
        operations = len(found.get_space_group_operations()) // lattice_translations
        assert operations % asked == 0, f"{operations} operations found, {asked} asked for"


def test_fallback_without_symmetry(monkeypatch):
    monkeypatch.setattr(random_search, "_place_on_orbits", lambda *args: None)
    for crystal in crystals(Target(10, {"Mg": 4, "O": 4})):
        assert crystal.composition.as_dict() == {"Mg": 4, "O": 4}
        assert separation(crystal) >= 0.75 * 0.97**10
        assert SpacegroupAnalyzer(crystal.to_structure()).get_space_group_number() == 1


def test_a_cell_that_cannot_be_packed_fails_in_place():
    samples = generator(volume_factor=(0.05, 0.05), attempts=2).sample([Target(2, {"Mg": 8})], seed=0)
    assert [sample.failure.kind for sample in samples] == [FailureKind.NOT_CONVERGED] * 2
    assert "Mg8" in samples[0].failure.message


def test_too_large_a_target_names_the_setting():
    (sample,) = generator(max_atoms=4).sample([Target(1, {"Mg": 5})], seed=0)
    assert sample.failure.kind is FailureKind.INVALID_INPUT
    assert "generator.max_atoms" in sample.failure.message


def test_equal_seeds_agree_across_processes():
    code = (
        "from discovery.types import Target; from generators.random_search import RandomSearchGenerator as G;"
        "print([s.crystal.content_hash for s in G(G.Config()).sample([Target(5, {'Mg': 2, 'Si': 1})], seed=3)])"
    )
    texts = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(texts) == 1
    assert texts.pop().count(b",") == 4


def test_a_sample_does_not_depend_on_the_targets_beside_it():
    target = Target(3, {"Cu": 3, "Au": 1})
    alone = generator().sample([target], seed=5)
    first = generator().sample([target, Target(2, {"Si": 2})], seed=5)[:3]
    assert [s.crystal for s in alone] == [s.crystal for s in first]


def test_element_sets_give_cells_of_different_sizes():
    sizes = {len(crystal) for crystal in crystals(Target(30, elements=("Mg", "Si")), max_atoms=8)}
    assert min(sizes) >= 2
    assert max(sizes) <= 8
    assert len(sizes) >= 4


@pytest.mark.parametrize("element", [Element.from_Z(z).symbol for z in range(1, 95)])
def test_every_element_up_to_plutonium_is_sampled_or_fails_with_a_reason(element):
    (sample,) = generator().sample([Target(1, {element: 1})], seed=0)
    if sample.crystal is None:
        assert element in {"At", "Fr"}, sample.failure
        assert element in sample.failure.message


def test_atomic_volumes_describe_crystals_they_were_not_fitted_to():
    path = SHARED / "data/mp_20_bt/test.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set DISCOVERY_SHARED")
    known = [reference.crystal for reference in read_csv(path).crystals]
    estimates = [sum(atomic_volume(str(e)) * n for e, n in crystal.composition.items()) for crystal in known]
    ratio = np.array([crystal.volume for crystal in known]) / estimates
    assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert np.percentile(ratio, 5) > 0.8
    assert np.percentile(ratio, 95) < 1.25


def test_it_has_no_weights():
    assert generator().checkpoint is None
    with pytest.raises(InvalidInputError, match="no weights"):
        generator().load(Checkpoint("x", "0"))


@pytest.mark.parametrize("volume_factor", [(1.4, 0.8), (0, 1)])
def test_wrong_volume_range_is_refused(volume_factor):
    with pytest.raises(ValidationError, match="volume_factor"):
        generator(volume_factor=volume_factor)
