"""Simulated campaigns: counted right, equal to real ones, the same whatever runs beside them."""

import json
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import psutil
import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from discovery.calibration import Prediction
from discovery.cli import app
from discovery.errors import ConfigError, InvalidInputError
from discovery.simulate_command import show
from discovery.simulation import (
    Call,
    KnownPhase,
    Simulation,
    Trajectory,
    collect,
    control_arms,
    read_database,
    simulate,
)
from tests.discovery.campaigns import outcome, run, small_config, tiny_config

LI_O = (
    KnownPhase("Li2O", {"Li": 2, "O": 1}, -2.0, 3, hidden=True),
    KnownPhase("Li2O-high", {"Li": 4, "O": 2}, -1.9, 6, hidden=True),
    KnownPhase("Li2O2", {"Li": 4, "O": 4}, -1.75, 8, hidden=True),
    KnownPhase("LiO3", {"Li": 1, "O": 3}, -0.5, 4, hidden=True),
    KnownPhase("LiO2", {"Li": 1, "O": 2}, -1.3, 3, hidden=False),
)


NUMBERS = count()


def call(composition, energy):
    return Call(f"c{next(NUMBERS)}", 0, composition, energy, 0.1)


def made(trajectories, budget=4, max_atoms=6):
    return Simulation(("Li", "O"), budget, 1e-3, max_atoms, LI_O, tuple(trajectories))


def test_a_stable_phase_counts_once_and_a_metastable_one_not_at_all():
    calls = (
        call({"Li": 4, "O": 2}, -1.9),
        call({"Li": 2, "O": 1}, None),
        call({"Li": 2, "O": 1}, -2.0),
        call({"Li": 4, "O": 2}, -2.0),
    )
    result = made([Trajectory("a", 0, calls), Trajectory("a", 1, (call({"Li": 1, "O": 3}, -0.5),))])
    assert result.stable == {"Li2O", "Li2O2"}
    assert result.found("a").tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


def test_known_phases_are_no_finds_and_large_cells_out_of_reach():
    result = made([Trajectory("a", 0, (call({"Li": 1, "O": 2}, -1.3),))])
    assert "LiO2" not in result.stable
    assert result.found("a")[0, -1] == 0
    assert result.reachable == {"Li2O"}


def test_what_campaigns_find_beyond_the_database_changes_the_hull_for_all():
    better = Trajectory("b", 0, (call({"Li": 2, "O": 1}, -2.2), call({"Li": 1, "O": 1}, -1.9)))
    result = made([Trajectory("a", 0, (call({"Li": 2, "O": 1}, -2.0),)), better])
    assert result.found("a")[0].tolist() == [0, 0, 0, 0, 0]
    assert result.found("b")[0].tolist() == [0, 1, 2, 2, 2]


def test_acceleration_is_the_ratio_of_means_with_an_interval():
    find, miss = call({"Li": 2, "O": 1}, -2.0), call({"Li": 1, "O": 3}, None)
    trajectories = [Trajectory("good", seed, (find, miss)) for seed in range(10)]
    trajectories += [Trajectory("bad", seed, (find if seed < 5 else miss,)) for seed in range(10)]
    result = made(trajectories)
    faster = result.acceleration("good", "bad", 0.25)
    assert faster.value == 2.0
    assert 1.0 <= faster.low < 2.0 < faster.high
    assert result.yield_per_call("good", 0.5).value == 0.5
    nothing = made([*trajectories[:10], *(Trajectory("bad", seed, (miss,)) for seed in range(10))])
    assert nothing.acceleration("good", "bad", 1.0).to_dict() == {"value": None, "low": None, "high": None}


def test_arms_are_also_compared_seed_by_seed():
    find, miss = call({"Li": 2, "O": 1}, -2.0), call({"Li": 1, "O": 3}, -0.5)
    trajectories = [Trajectory("good", 0, (find,)), Trajectory("good", 2, (miss, find)), Trajectory("good", 3, (find,))]
    result = made([*trajectories, Trajectory("bad", 2, (miss,)), Trajectory("bad", 0, (find, miss))])
    assert result.advantages("good", "bad", 1.0) == {0: 0, 2: 1}
    assert result.advantages("bad", "good", 1.0) == {2: -1, 0: 0}


def test_one_seed_is_shown_without_interval(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    find, miss = call({"Li": 2, "O": 1}, -2.0), call({"Li": 1, "O": 3}, None)
    one, two = (
        [Trajectory(arm, seed, (found,)) for arm, found in (("good", find), ("bad", miss)) for seed in range(seeds)]
        for seeds in (1, 2)
    )
    show(made(one), "bad", (1.0,))
    shown = capsys.readouterr().out
    assert "1.00  (∞×)" in shown
    assert "interval" not in shown
    show(made(two), "bad", (1.0,))
    shown = capsys.readouterr().out
    assert "1.00  (∞×, ∞–∞)" in shown
    assert "interval" in shown


def test_predictions_of_all_seeds_are_scored_together():
    said = [Prediction("c0", "Li2O", 0, 0.8, stable=True), Prediction("c1", "LiO3", 1, 0.4, stable=False)]
    result = made([Trajectory("a", seed, (), (said[seed],)) for seed in (0, 1)] + [Trajectory("b", 0, ())])
    scores = result.summary("b")["arms"]["a"]["calibration"]
    assert scores["brier"] == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert [(one["selection"], one["n"]) for one in scores["selections"]] == [(0, 1), (1, 1)]
    assert result.summary("b")["arms"]["b"]["calibration"]["brier"] is None


def test_json_round_trip():
    calls = (call({"Li": 2, "O": 1}, -2.0), call({"Li": 2, "O": 1}, None))
    result = made([Trajectory("a", 0, calls, (Prediction("c0", "Li2O", 0, 0.7, stable=True),))])
    assert Simulation.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    older = json.loads(json.dumps(result.to_dict()))
    del older["trajectories"][0]["predictions"]
    assert Simulation.from_dict(older).reliability("a").predictions == ()
    with pytest.raises(InvalidInputError, match="format"):
        Simulation.from_dict({"format": "other"})


L1_2 = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


def test_a_database_is_the_part_of_files_in_the_space(cu_au, tmp_path):
    database = read_database([cu_au, cu_au], ("Au", "Cu"), known=1 / 3)
    assert set(database.entries) == {"mp-1", "mp-2", "mp-3"}
    assert len(database.known) == 1
    assert sum(phase.hidden for phase in database.phases) == 2
    assert {phase.n_atoms for phase in database.phases} == {2, 4}
    database.write(tmp_path / "again.csv")
    again = read_database([tmp_path / "again.csv"], ("Au", "Cu"), known=1 / 3)
    assert again.phases == database.phases
    with pytest.raises(InvalidInputError, match="choose another space"):
        read_database([cu_au], ("Li", "O"))


def test_total_energies_become_formation_energies(tmp_path):
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.ase import AseAtomsAdaptor

    copper, gold = (AseAtomsAdaptor.get_structure(bulk(symbol)) for symbol in ("Cu", "Au"))
    alloy = Structure(Lattice.cubic(3.9), ["Cu"] + ["Au"] * 3, L1_2)
    energies = ((copper, -4.0), (gold, -3.0), (alloy, -13.4))
    entries = [ComputedStructureEntry(s, e, entry_id=f"e{n}").as_dict() for n, (s, e) in enumerate(energies)]
    path = tmp_path / "entries.json"
    path.write_text(json.dumps(entries))
    (phase,) = read_database([path], ("Au", "Cu")).phases
    assert phase.formation_energy_per_atom == pytest.approx((-13.4 + 4.0 + 9.0) / 4)


def test_a_simulated_campaign_is_the_campaign_itself(tmp_path):
    config = small_config(tmp_path / "real", seed=0, rounds=1, targets_per_round=1)
    real = outcome(run(config))
    result = simulate({"greedy": config}, [0], tmp_path / "simulated")
    assert outcome(tmp_path / "simulated" / "greedy" / "000") == real
    assert len(result.trajectories[0].calls) == len(result.reliability("greedy").predictions) > 0
    energies = [call.formation_energy_per_atom for call in result.trajectories[0].calls]
    verdicts = [candidate[-1] for candidate in real["candidates"] if candidate[-1] is not None]
    assert sorted(energies) == sorted(verdict.formation_energy_per_atom for verdict in verdicts)
    finished = (tmp_path / "simulated" / "greedy" / "000" / "campaign.sqlite").stat().st_mtime_ns
    assert simulate({"greedy": config}, [0], tmp_path / "simulated") == result
    assert (tmp_path / "simulated" / "greedy" / "000" / "campaign.sqlite").stat().st_mtime_ns == finished


def test_arms_at_unequal_budget_are_not_compared(tmp_path):
    arms = {"a": small_config(tmp_path), "b": small_config(tmp_path, budget={"reference_calls": 3})}
    with pytest.raises(ConfigError, match="equal space and budget"):
        simulate(arms, [0], tmp_path)
    with pytest.raises(ConfigError, match="reference_calls"):
        simulate({"a": small_config(tmp_path, budget={"wall_hours": 1})}, [0], tmp_path)


def test_control_arms_change_one_thing_each(tmp_path):
    config = small_config(tmp_path)
    arms = control_arms(config)
    assert set(arms) == {"frozen", "random", "substitution", "no_screening"}
    assert not arms["frozen"].campaign.learn
    assert arms["random"].agent.name == "random"
    assert arms["random"].generator == config.generator
    assert arms["substitution"].generator.name == "substitution"
    assert arms["no_screening"].oracle.screening.name == "none"
    assert all(arm.campaign.budget == config.campaign.budget for arm in arms.values())


REPLAY = [
    "simulate",
    "replay",
    "campaign.chemical_space=Cu-Au",
    "oracle/screening=emt",
    "oracle.screening.fmax=0.3",
    "campaign.rounds=2",
    "campaign.max_atoms=4",
    "campaign.targets_per_round=3",
    "campaign.budget.reference_calls=4",
    "generator.decoys=1",
    "generator.filler=random_search",
]


def test_the_command_replays_a_database(cu_au, tmp_path):
    command = [*REPLAY, "--database", str(cu_au), "--out", str(tmp_path), "--seeds", "1", "--workers", "1"]
    first = CliRunner().invoke(app, [*command, "--json"])
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert len(summary["hidden_stable_phases"]) == 3
    assert summary["within_reach"] == summary["hidden_stable_phases"]
    assert set(summary["arms"]) == {"random", "greedy"}
    stored = Simulation.from_dict(json.loads((tmp_path / "simulation.json").read_text()))
    assert max(stored.found(arm)[0, -1] for arm in stored.arms) >= 1
    shown = CliRunner().invoke(app, command)
    assert "times as many as the baseline" in shown.output
    for arm in stored.arms:
        score = summary["arms"][arm]["calibration"]["brier"]
        assert score == pytest.approx(stored.reliability(arm).brier())
        assert f"{score:.3f}" in shown.output.partition("Brier score by selection")[2]


@pytest.mark.slow
def test_campaigns_side_by_side_find_the_same(tmp_path):
    arms = {"many": tiny_config(tmp_path), "few": tiny_config(tmp_path, campaign={"targets_per_round": 1})}
    alone, beside = (
        [
            (one.arm, one.seed, call.candidate, call.composition, call.formation_energy_per_atom)
            for one in simulate(arms, [0, 1], tmp_path / str(workers), workers=workers).trajectories
            for call in one.calls
        ]
        for workers in (1, 2)
    )
    assert beside == alone
    assert {(arm, seed) for arm, seed, *_ in alone} == {("many", 0), ("many", 1), ("few", 0), ("few", 1)}


@pytest.mark.slow
def test_a_killed_simulation_leaves_no_process(tmp_path):
    program = (
        "from pathlib import Path; from discovery.simulation import simulate;"
        "from tests.discovery.campaigns import tiny_config;"
        f"folder = Path({str(tmp_path)!r});"
        "endless = {'chemical_space': 'Ag-Al-Au-Cu-Ni-Pd-Pt', 'rounds': 9_999, 'budget': {'reference_calls': 99_999}};"
        "\nif __name__ == '__main__': simulate({'a': tiny_config(folder, campaign=endless)}, [0, 1], folder, workers=2)"
    )
    (tmp_path / "program.py").write_text(program)
    driver = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("a/*/calculations"))) < 2:
            assert driver.poll() is None
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert len(family) >= 2
    finally:
        driver.kill()
        driver.wait()
    _, left = psutil.wait_procs(family, timeout=30)
    for process in left:
        process.kill()
    assert left == []


def test_a_baseline_that_does_not_run_is_refused(cu_au, tmp_path):
    result = CliRunner().invoke(app, [*REPLAY, "--baseline", "thompson", "--out", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)


@pytest.mark.slow
def test_one_switch_runs_the_control_arms_beside_a_campaign(tmp_path):
    run_dir = tmp_path / "run"
    command = [
        "launch",
        "quickstart",
        "oracle/screening=emt",
        "oracle/reference=emt",
        "oracle.screening.fmax=0.3",
        "oracle.reference.fmax=0.3",
        "generator=random_search",
        "executor.name=in_process",
        "oracle.check=skip",
        "campaign.chemical_space=Cu-Au",
        "campaign.max_atoms=4",
        "campaign.rounds=1",
        "campaign.targets_per_round=1",
        "campaign.samples_per_target=2",
        "campaign.budget.reference_calls=2",
        f"run_dir={run_dir}",
        "--control-arms",
    ]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    arms = {"frozen", "random", "substitution", "no_screening"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", *(f"run-{arm}" for arm in arms)}
    assert "times as many as the baseline" in first.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output


def test_finished_campaigns_are_compared_by_what_they_computed(tmp_path):
    config = small_config(tmp_path, seed=0, rounds=1, targets_per_round=1)
    simulated = simulate({"campaign": config}, [0], tmp_path / "runs")
    assert simulated.trajectories[0].calls
    assert collect([("campaign", tmp_path / "runs" / "campaign" / "000")]) == simulated
