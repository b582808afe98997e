import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from typer.testing import CliRunner

from discovery.cli import app
from discovery.crystal import Crystal
from discovery.evaluation import pairs, stability
from discovery.evaluation.results import rate, statistic
from discovery.sets import read_set
from oracles.emt import EMTOracle


def ordered(a=3.9):
    return Atoms("CuAu", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[a / 2**0.5, a / 2**0.5, a], pbc=True)


@pytest.fixture(scope="module")
def oracle():
    return EMTOracle(EMTOracle.Config())


@pytest.fixture
def hull(tmp_path, oracle):
    """The elements, relaxed by EMT."""
    frames = []
    for evaluation in oracle.evaluate([Crystal.from_atoms(bulk(symbol)) for symbol in ("Cu", "Au")]):
        atoms = evaluation.crystal.to_atoms()
        atoms.info["energy"] = evaluation.energy
        frames.append(atoms)
    write(tmp_path / "hull.extxyz", frames)
    return read_set(tmp_path / "hull.extxyz")


@pytest.fixture
def generated(tmp_path):
    shifted = ordered()
    shifted.positions += 0.3
    overlapping = Atoms("Cu2", scaled_positions=[[0, 0, 0], [0.05, 0, 0]], cell=[4, 4, 4], pbc=True)
    frames = [ordered(), shifted, bulk("Cu", a=3.7), overlapping, bulk("Ag"), bulk("Si")]
    write(tmp_path / "generated.extxyz", frames)
    return read_set(tmp_path / "generated.extxyz")


def test_every_structure_has_a_fate(generated, hull, oracle):
    result = stability.evaluate(generated, hull, hull, oracle)
    fates = list(result.outcomes.values())
    first, second, known, overlapping, silver, silicon = fates
    # EMT makes CuAu stable against the elements; both copies are the same crystal, and elemental copper is known
    assert sorted([first, second]) == ["stable ≤ 0 eV/atom, duplicate, novel", "stable ≤ 0 eV/atom, unique, novel"]
    assert known == "stable ≤ 0 eV/atom, unique, known"
    assert overlapping == "invalid: atoms too close"
    assert silver == "undefined: the hull has no Ag"
    assert silicon.startswith("failed: ")
    assert result.metric("sun_0").value == pytest.approx(1 / 6)
    assert result.metric("stable_0.1").value == pytest.approx(3 / 6)
    assert result.metric("unique").value == pytest.approx(3 / 6)
    assert sum(result.losses.values()) == 6
    per_sample, per_relaxation, per_sun = result.costs
    assert per_sun.seconds == pytest.approx(sum(result.seconds.values()))
    assert per_sample.seconds == pytest.approx(per_sun.seconds / 6)
    assert (per_relaxation.n, per_relaxation.seconds) == (5, pytest.approx(result.seconds["relaxation"] / 5))


def test_order_of_the_input_does_not_matter(generated, hull, oracle):
    there = stability.evaluate(generated, hull, hull, oracle)
    back = stability.evaluate(replace(generated, members=generated.members[::-1]), hull, hull, oracle)
    assert dict(there.outcomes) == dict(back.outcomes)


def test_command_writes_table_json_and_page(tmp_path, generated, hull):
    arguments = ["evaluate", "stability", str(generated.path), "--hull", str(hull.path), "--oracle", "emt"]
    page, out = tmp_path / "page.html", tmp_path / "result.json"
    run = CliRunner().invoke(app, [*arguments, "--html", str(page), "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert "6  requested" in run.output
    result = json.loads(out.read_text())
    assert sum(result["outcome_counts"].values()) == result["requested"] == 6
    assert result["inputs"]["hull"]["sha256"] == hull.sha256
    text = page.read_text()
    assert "sun_0.1" in text
    assert "Plotly.newPlot" in text
    assert 'src="http' not in text


def test_given_energies_are_used_without_an_oracle(tmp_path, hull):
    frames = []
    for energy in (-1.0, 5.0):
        atoms = ordered()
        atoms.info["energy"] = energy
        frames.append(atoms)
    write(tmp_path / "relaxed.extxyz", [*frames, ordered()])
    nothing = replace(hull, members=())
    result = stability.evaluate(read_set(tmp_path / "relaxed.extxyz"), hull, nothing, None)
    assert list(result.outcomes.values()) == [
        "stable ≤ 0 eV/atom, unique, novel",
        "unstable, duplicate, novel",
        "failed: no energy is given",
    ]


def test_pairs_compare_the_lowest_of_each_composition(tmp_path):
    first, second, hull = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "hull.csv"
    first.write_text("id,formula,formation_energy_per_atom\n1,MgO,-3\n2,Mg2O2,-2\n3,NaCl,-1\n4,LiF,\n5,MgSi,-0.1\n")
    second.write_text("id,formula,formation_energy_per_atom\n1,MgO,-2.5\n2,NaCl,-1.5\n3,LiF,-3\n4,KCl,-2\n")
    hull.write_text("id,formula,formation_energy_per_atom\nr,MgO,-2.9\ns,NaCl,-1.01\n")
    result = pairs.evaluate(read_set(first), read_set(second), read_set(hull))
    assert result.metric("delta_formation_energy").value == pytest.approx((-0.5 + 0.5) / 2)
    assert result.metric("reduction_rate").value == 0.5
    assert result.metric("convergence_rate_first").value == 0.75  # MgO, NaCl, MgSi of four
    assert result.metric("convergence_rate_second").value == 1.0
    assert result.metric("stable_first").value == pytest.approx(1 / 5)  # MgSi is undefined: the hull has no Si
    assert result.metric("metastable_first").value == pytest.approx(2 / 5)


def test_intervals():
    # Wilson's interval for 8 of 10, Brown, Cai and DasGupta (Stat. Sci. 16, 101, 2001)
    assert rate("x", 8, 10).interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert rate("x", 0, 0).value is None
    values = np.random.default_rng(1).normal(size=400)
    low, high = statistic("x", values).interval
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_generators_are_compared_on_the_same_targets(tmp_path, hull):
    arguments = ["compare", "Cu1Au1", "Cu3Au1", "--hull", str(hull.path), "--samples", "2", "--oracle", "emt", "--json"]
    run = CliRunner().invoke(app, [*arguments, "--generator", "random_search", "--generator", "substitution"])
    assert run.exit_code == 0, run.output
    comparison = json.loads(run.stdout)
    assert set(comparison["results"]) == {"random_search", "substitution"}
    for result in comparison["results"].values():
        assert result["requested"] == sum(result["outcome_counts"].values()) == 4
        assert {"sampling", "relaxation", "hull"} <= set(result["seconds"])


def test_a_budget_of_oracle_seconds_ends_relaxations(generated, hull, oracle):
    result = stability.evaluate(generated, hull, hull, oracle, budget=stability.Budget(oracle_seconds=0.0))
    assert result.losses["not relaxed: oracle seconds spent"] == 5
    assert sum(result.losses.values()) == 6
