import json

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.core.structure_prediction.substitution_probability import SubstitutionProbability

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.matching import Matcher, spacegroup
from discovery.types import FailureKind, Target
from generators.substitution import SubstitutionGenerator

ROCKSALT = Crystal.from_atoms(bulk("NaCl", "rocksalt", a=5.64))
CSCL = Crystal.from_atoms(bulk("CsCl", "cesiumchloride", a=4.12))


@pytest.fixture
def templates(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps([ROCKSALT.to_dict(), CSCL.to_dict()]))
    return path


def make(templates, **options):
    return SubstitutionGenerator(SubstitutionGenerator.Config(templates=templates, **options))


def test_ions_take_the_sites_of_templates(templates):
    first, second = make(templates).sample([Target(2, {"Mg": 1, "O": 1})], seed=0)
    assert {spacegroup(first.crystal)[0], spacegroup(second.crystal)[0]} == {221, 225}
    rocksalt = next(s.crystal for s in (first, second) if spacegroup(s.crystal)[0] == 225)
    measured = Crystal.from_atoms(bulk("MgO", "rocksalt", a=4.212))
    assert Matcher().same(rocksalt, measured)
    assert rocksalt.volume == pytest.approx(measured.volume, rel=0.2)


def test_probable_substitutions_come_first(templates):
    generator = make(templates)
    first = [generator.sample([Target(1, {"Na": 1, "Br": 1})], seed=seed)[0].crystal for seed in range(40)]
    from_rocksalt = sum(spacegroup(crystal)[0] == 225 for crystal in first)
    # without noise the weight of Na+ -> Na+ against Cs+ -> Na+ decides (the anion is the same)
    weights = SubstitutionProbability()
    ratio = np.exp(weights.get_lambda("Na+", "Na+") - weights.get_lambda("Cs+", "Na+"))
    assert ratio > 10
    assert from_rocksalt / 40 == pytest.approx(ratio / (1 + ratio), abs=0.12)


def test_cells_are_repeated_to_the_number_of_atoms(templates):
    (sample,) = make(templates).sample([Target(1, {"K": 3, "F": 3})], seed=1)
    assert sample.crystal.composition.as_dict() == {"K": 3, "F": 3}


def test_targets_without_a_template_say_so(templates):
    samples = make(templates).sample([Target(1, {"Mg": 2, "Si": 1}), Target(1, elements=("Mg", "Si", "O"))], seed=0)
    assert [sample.failure.kind for sample in samples] == [FailureKind.INVALID_INPUT] * 2
    assert "1:2" in samples[0].failure.message
    assert "3 elements" in samples[1].failure.message


def test_templates_must_exist(tmp_path):
    with pytest.raises(InvalidInputError, match="does not exist"):
        make(tmp_path / "nothing.csv")
