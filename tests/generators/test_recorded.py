import pytest
from pymatgen.core import Lattice, Structure

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError
from discovery.matching import Matcher
from discovery.types import Target
from generators.recorded import RecordedGenerator

FLUORITE = Structure.from_spacegroup("Fm-3m", Lattice.cubic(6.35), ["Si", "Mg"], [[0, 0, 0], [0.25, 0.25, 0.25]])


@pytest.fixture
def known(tmp_path):
    FLUORITE.to(str(tmp_path / "Mg2Si.cif"))
    return tmp_path


def sample(known, target, seed=0, **options):
    samples = RecordedGenerator(RecordedGenerator.Config(path=known, **options)).sample([target], seed=seed)
    return [sample.crystal for sample in samples]


def places(crystals):
    """Where among the samples the known crystal is."""
    known = Crystal.from_structure(FLUORITE)
    return [place for place, crystal in enumerate(crystals) if Matcher().same(crystal, known)]


def test_the_known_crystal_hides_among_decoys(known):
    target = Target(7, {"Mg": 2, "Si": 1})
    orders = [sample(known, target, seed, decoys=6, filler="random_search") for seed in range(5)]
    assert all(len(set(order)) == 7 for order in orders)
    assert all(set(order) == set(orders[0]) for order in orders)
    assert all(places(order) for order in orders)
    assert len({tuple(places(order)) for order in orders}) > 1


def test_decoys_do_not_depend_on_what_was_asked_before(known):
    generator = RecordedGenerator(RecordedGenerator.Config(path=known, decoys=2))
    targets = [Target(3, {"Mg": 1, "Si": 1}), Target(3, {"Si": 1, "Mg": 2})]
    together = generator.sample(targets, seed=0)
    assert {s.crystal for s in together[3:]} == set(sample(known, targets[1], seed=9, decoys=2))


def test_larger_cells_are_supercells_of_the_known_crystal(known):
    (crystal,) = sample(known, Target(1, {"Mg": 4, "Si": 2}), decoys=0)
    assert len(crystal) == 6
    assert places([crystal]) == [0]


def test_without_decoys_there_is_nothing_else(known):
    generator = RecordedGenerator(RecordedGenerator.Config(path=known, decoys=0))
    for target in (Target(2, {"Mg": 1, "Si": 1}), Target(1, elements=("Mg", "Ge"))):
        assert all("has no crystal" in s.failure.message for s in generator.sample([target], seed=0))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"generator\.path"):
        RecordedGenerator(RecordedGenerator.Config(path=tmp_path / "none.csv"))
