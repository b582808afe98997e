"""Tuning: sweeps, the best settings, pruning, interrupted studies, workers, and the command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import yaml
from ase.build import bulk
from pymatgen.io.ase import AseAtomsAdaptor
from typer.testing import CliRunner

from discovery.cli import app
from discovery.config import campaign_file, compose
from discovery.errors import ConfigError, RunError
from discovery.tune import Report, Study, parse_sweeps


def values_of(settings: Sequence[str]) -> dict[str, float]:
    return {key: float(value) for key, _, value in (text.partition("=") for text in settings)}


@dataclass(frozen=True)
class Parabola:
    """Lowest at x = 3, y = 0; reports its value at ten steps; slow ones take their time."""

    seconds: float = 0.0

    def __call__(self, settings: Sequence[str], folder: Path, report: Report) -> float:
        folder.mkdir(parents=True, exist_ok=True)
        values = values_of(settings)
        if values["x"] > 9:
            raise RuntimeError("x is too large")
        value = (values["x"] - 3) ** 2 + values.get("y", 0)
        for step in range(10):
            with (folder / "steps").open("a") as file:
                file.write(f"{step}\n")
            time.sleep(self.seconds / 10)
            report(step, value)
        return value


def study(folder: Path, *settings: str, seconds: float = 0.0) -> Study:
    fixed, sweeps = parse_sweeps(settings or ["y=1", "x=interval(0,8)"])
    return Study(Parabola(seconds), fixed, sweeps, folder, "minimize", optuna.pruners.MedianPruner(n_startup_trials=3))


@pytest.mark.parametrize(
    ("text", "extremes"),
    [
        ("k=choice(a,b)", ("k=a", "k=b")),
        ("k=1,2,4", ("k=1", "k=2", "k=4")),
        ("k=choice([0.9,0.99],[0.9,0.999])", ("k=[0.9, 0.99]", "k=[0.9, 0.999]")),
        ("k=interval(0,1)", ("k=0.0", "k=1.0")),
        ("k=int(interval(2,8))", ("k=2", "k=8")),
        ("k=tag(log,interval(1e-4,1e-2))", ("k=0.0001", "k=0.01")),
        ("k=range(1,10,3)", ("k=1", "k=7")),
        ("k=range(0,1,0.25)", ("k=0.0", "k=0.75")),
    ],
)
def test_sweeps_are_read_as_hydra_writes_them(text: str, extremes: tuple[str, ...]):
    fixed, (sweep,) = parse_sweeps(["a.b=1", text])
    assert fixed == ["a.b=1"]
    assert sweep.extremes == extremes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["a=1"], "nothing to tune"),
        (["a=interval(1,0)"], "interval"),
        (["a=tag(log,interval(0,1))"], "log"),
        (["a=choice("], "choice"),
    ],
)
def test_bad_sweeps_are_refused(settings: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_sweeps(settings)


def test_study_finds_the_minimum_and_prunes_what_is_worse(tmp_path: Path):
    tuning = study(tmp_path / "study").run(20)
    assert tuning.parameters["x"] == pytest.approx(3, abs=1)
    assert tuning.value == 1 + (tuning.parameters["x"] - 3) ** 2
    assert tuning.settings == ("y=1", f"x={tuning.parameters['x']}")
    assert tuning.trials["pruned"] > 0
    assert sum(tuning.trials.values()) == 20
    assert "plotly" in (tmp_path / "study" / "study.html").read_text()


def test_a_trial_that_fails_is_counted_with_its_reason(tmp_path: Path):
    seen = []
    tuning = study(tmp_path / "study", "x=5,10").run(6, observe=seen.append)
    assert tuning.parameters == {"x": 5}
    errors = {trial.user_attrs["error"] for trial in seen if "error" in trial.user_attrs}
    assert errors == {"RuntimeError: x is too large"}
    with pytest.raises(RunError, match="x is too large"):
        study(tmp_path / "other", "x=10,11").run(2)


def test_study_goes_on_where_it_ended_and_refuses_other_settings(tmp_path: Path):
    first = study(tmp_path / "study").run(4)
    again = study(tmp_path / "study").run(4)
    assert (again.trial, again.value) == (first.trial, first.value)
    assert sum(study(tmp_path / "study").run(6).trials.values()) == 6
    with pytest.raises(RunError, match="different: x"):
        study(tmp_path / "study", "y=1", "x=interval(0,7)").run(8)


def test_killed_trial_is_taken_up_again_with_its_settings(tmp_path: Path):
    folder = tmp_path / "study"
    program = (
        "from pathlib import Path; from tests.discovery.test_tune import study;"
        f"study(Path({str(folder)!r}), seconds=60).run(2)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    try:
        until = time.monotonic() + 60
        while not list(folder.glob("trials/*/steps")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        with pytest.raises(RunError, match="already has a driver"):
            study(folder, seconds=60).run(2)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (begun,) = folder.glob("trials/*")
    tuning = study(folder).run(2)
    assert sum(tuning.trials.values()) == 2
    assert "fail" not in tuning.trials
    assert (begun / "steps").read_text().split().count("0") == 2
    assert len(list(folder.glob("trials/*"))) == 2


@pytest.mark.slow
def test_workers_on_ray_share_the_trials(tmp_path: Path):
    import ray

    try:
        tuning = study(tmp_path / "study").run(8, workers=2)
    finally:
        ray.shutdown()
    assert sum(tuning.trials.values()) == 8
    assert tuning.value < 10


def test_command_tunes_a_training_whose_best_settings_train(tmp_path: Path):
    def cif(symbol: str, a: float) -> str:
        structure = AseAtomsAdaptor.get_structure(bulk(symbol, "fcc", a=a))
        return '"' + structure.to(fmt="cif").replace('"', '""') + '"'

    data = tmp_path / "data.csv"
    rows = [f"{symbol}{i},{cif(symbol, a + 0.01 * i)}" for symbol, a in (("Cu", 3.6), ("Au", 4.1)) for i in range(8)]
    data.write_text("\n".join(["material_id,cif", *rows]))
    small = ["token.width=16", "token.pair_width=8", "token.layers=1", "training.batch_size=8", "validate_every=2"]
    out = tmp_path / "study"
    command = ["tune", "train", str(data), *small, "training.steps=4", "training.learning_rate=1e-3,1e-9"]
    result = CliRunner().invoke(app, [*command, "--out", str(out), "--trials", "4", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sum(found["trials"].values()) == 4
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert best["training"]["learning_rate"] == float(found["parameters"]["training.learning_rate"])
    train = ["train", str(data), "--config", str(out / "best.yaml"), "--out", str(tmp_path / "run"), "--json"]
    trained = CliRunner().invoke(app, train)
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["validation_loss"] == pytest.approx(found["value"], abs=1e-6)


def test_command_refuses_unknown_settings_before_work_starts(tmp_path: Path):
    data = tmp_path / "data.csv"
    data.write_text("material_id,cif\n")
    out = tmp_path / "study"
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        CliRunner().invoke(
            app, ["tune", "train", str(data), "training.learnin_rate=1,2", "--out", str(out)], catch_exceptions=False
        )
    assert not out.exists()


CAMPAIGN = [
    "replay",
    "campaign.chemical_space=Cu-Au",
    "oracle/screening=emt",
    "oracle.screening.fmax=0.3",
    "campaign.rounds=1",
    "campaign.max_atoms=4",
    "campaign.targets_per_round=2",
    "campaign.samples_per_target=2",
    "campaign.budget.reference_calls=3",
    "generator.decoys=1",
    "generator.filler=random_search",
]


def test_command_tunes_an_agent_on_simulated_campaigns(cu_au: Path, tmp_path: Path):
    out = tmp_path / "study"
    given = ["tune", "simulate", *CAMPAIGN, "agent=greedy", "agent.exploration=0,0.05", "--database", str(cu_au)]
    options = ["--seeds", "1", "--trials", "2", "--into", "quickstart", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, [*given, *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["trials"] == {"complete": 2}
    assert 0 <= found["value"] <= 3
    tuned, plain = compose(found["config"]), compose("quickstart")
    assert tuned.agent.options.exploration == float(found["parameters"]["agent.exploration"])
    assert tuned.model_copy(update={"name": plain.name, "run_dir": plain.run_dir, "agent": plain.agent}) == plain


def test_command_refuses_settings_of_another_agent(cu_au: Path, tmp_path: Path):
    command = ["tune", "simulate", *CAMPAIGN, "agent=random", "agent.exploration=0,1", "--out", str(tmp_path / "study")]
    with pytest.raises(ConfigError, match=r"agent.exploration.*unknown key"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_campaign_file_composes_as_campaign_and_overrides_do(tmp_path: Path):
    overrides = ["agent=random", "oracle/reference=emt", "campaign.rounds=9", "campaign.budget.core_hours=2"]
    path = tmp_path / "mine.yaml"
    path.write_text(campaign_file("quickstart", overrides))
    again = tmp_path / "again.yaml"
    again.write_text(campaign_file(str(path), ["agent=greedy", "agent.exploration=0.2"]))
    plain = compose("quickstart", [*overrides[1:], "agent=greedy", "agent.exploration=0.2"])
    assert compose(str(again)).model_copy(update={"name": plain.name, "run_dir": plain.run_dir}) == plain
