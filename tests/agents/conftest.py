"""Campaign views made of real structures, for tests of agents."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from discovery.crystal import Crystal
from discovery.hull import Hull, Phase
from discovery.protocols import CampaignView
from discovery.references import ReferencesConfig, reference_crystals
from discovery.types import Budget, Candidate, EnergyScale, Evaluation, State, Target

SCALE = EnergyScale("code", "1", "PBE")


def hull(elements):
    return Hull(SCALE).add(Phase(f"element-{e}", {e: 1}, -1.0, SCALE) for e in elements)


def view(elements, *, max_atoms=8, seed=0, candidates=(), screening_hull=None, budget=None):
    known = screening_hull or hull(elements)
    return CampaignView(
        seed=seed,
        round=0,
        elements=elements,
        max_atoms=max_atoms,
        samples_per_target=4,
        screening_hull=known,
        reference_hull=known,
        candidates=tuple(candidates),
        budget=budget or Budget({"reference_calls": 10}),
    )


def candidate(id_, crystal, energy, state=State.SCREENED):
    """A candidate whose formation and decomposition energy are `energy`, eV/atom: the hull holds elements alone."""
    composition = {e.symbol: int(n) for e, n in crystal.composition.items()}
    total = (energy - 1.0) * len(crystal) if energy is not None else None
    screening = Evaluation(SCALE, crystal=crystal, energy=total, converged=True)
    return Candidate(
        id=id_,
        round=0,
        target=Target(1, composition=composition, reason="test"),
        crystal=crystal,
        state=state,
        screening=screening if energy is not None else None,
        screening_formation_energy_per_atom=energy,
        screening_decomposition_energy=energy,
    )


def screened(elements, n, seed=0):
    """`n` decorated prototypes with random screening energies, in random order."""
    rng = np.random.default_rng(seed)
    config = ReferencesConfig(source="prototypes", max_atoms=6)
    crystals = [r.crystal for r in reference_crystals(elements, config) if len(r.crystal.composition) > 1]
    drawn = rng.permutation(len(crystals))[:n]
    return [candidate(f"c{i}", crystals[i], float(rng.normal(0.08, 0.1))) for i in drawn]


def compound(structure, a, symbols):
    return Crystal.from_atoms(bulk(symbols, structure, a=a))


def cell(composition):
    """A crystal of so many atoms, on the points of a primitive cubic row."""
    symbols = [symbol for symbol, n in composition.items() for _ in range(n)]
    atoms = Atoms(symbols, cell=[3.0 * len(symbols), 3.0, 3.0], pbc=True)
    atoms.positions[:, 0] = 3.0 * np.arange(len(symbols))
    return Crystal.from_atoms(atoms)


@pytest.fixture
def make():
    """Makers of hulls, candidates and views."""
    return SimpleNamespace(hull=hull, view=view, candidate=candidate, screened=screened, compound=compound, cell=cell)
