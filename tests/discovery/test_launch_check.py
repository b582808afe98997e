"""Campaigns refuse oracles that fail their check, and checks are done once."""

import json
import os
import sys
from pathlib import Path

import pytest

from discovery.check import check
from discovery.cli import main
from discovery.config import CampaignConfig
from discovery.errors import OracleCheckError
from discovery.launch_check import check_oracles, checked, remember
from discovery.types import Evaluation
from oracles.emt import EMTOracle
from tests.discovery.campaigns import small_config

PACKAGE = """
from dataclasses import replace
from oracles.emt import EMTOracle

class Soft(EMTOracle):
    \"\"\"EMT whose energies are half of what they should be, so that every metal is too soft.\"\"\"

    def evaluate(self, crystals, *, folder=None):
        return [replace(each, energy=each.energy / 2) if each.ok else each for each in super().evaluate(crystals)]

class Mortal(EMTOracle):
    def evaluate(self, crystals, *, folder=None):
        import os
        os._exit(11)
"""


@pytest.fixture
def flawed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install oracles that fail, as a package of their own."""
    info = tmp_path / "flawed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flawed\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[discovery.oracles]\nsoft = flawed:Soft\nmortal = flawed:Mortal\n")
    (tmp_path / "flawed.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("flawed", None)


def config(run_dir: Path, name: str = "emt", **oracle: str) -> CampaignConfig:
    data = small_config(run_dir).model_dump(mode="json")
    data["oracle"] |= oracle
    data["oracle"]["reference"]["name"] = name
    return CampaignConfig.model_validate(data)


def reports() -> list[Path]:
    return sorted(Path(os.environ["DISCOVERY_CACHE"], "checks").glob("*.json"))


def test_oracles_that_pass_are_checked_once(tmp_path: Path) -> None:
    """Of two oracles on one energy scale with different options, each is checked."""
    settings = config(tmp_path)
    first = [checked(choice, ("Cu", "Au")) for choice in (settings.oracle.screening, settings.oracle.reference)]
    assert all(report["passed"] for report in first)
    files = reports()
    written = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 2
    assert checked(settings.oracle.reference, ("Cu", "Au")) == json.loads(json.dumps(first[1]))
    assert [path.stat().st_mtime_ns for path in reports()] == written


@pytest.mark.usefixtures("flawed")
def test_an_oracle_that_dies_takes_nothing_else_with_it(tmp_path: Path) -> None:
    settings = config(tmp_path, "mortal")
    remember(check(settings.oracle.screening, extent="quick"))
    with pytest.raises(OracleCheckError, match=r"reference oracle mortal fails.*process.*died"):
        list(check_oracles(settings))


def test_what_discovery_check_has_found_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("discovery.check.LATTICE_TOLERANCE", 1e-6)
        remember(check(settings.oracle.reference, extent="quick"))
    assert not checked(settings.oracle.reference, ("Cu", "Au"))["passed"]
    remember(check(settings.oracle.reference))
    assert checked(settings.oracle.reference, ("Cu", "Au"))["passed"]
    assert checked(settings.oracle.reference, ("Cu", "Au"))["extent"] == "full"


def test_how_oracles_are_checked_is_no_part_of_the_result(tmp_path: Path) -> None:
    assert config(tmp_path, check="warn").config_hash == config(tmp_path).config_hash
    assert list(check_oracles(config(tmp_path, "emt", check="skip"))) == []
    assert not reports()


def test_an_oracle_that_looks_results_up_is_trusted(tmp_path: Path) -> None:
    data = small_config(tmp_path).model_dump(mode="json")
    for role in ("screening", "reference"):
        data["oracle"][role] = {"name": "recorded", "path": str(tmp_path / "nothing.csv")}
    assert list(check_oracles(CampaignConfig.model_validate(data))) == []


def test_what_is_missing_here_may_be_there_on_the_cluster(tmp_path: Path) -> None:
    data = small_config(tmp_path).model_dump(mode="json")
    data["oracle"]["screening"] = {"name": "matgl", "model": str(tmp_path)}
    data["oracle"]["reference"] = {"name": "recorded", "path": str(tmp_path / "nothing.csv")}
    data["executor"] = {"name": "ray", "address": "10.0.0.1:6379"}
    (warning,) = check_oracles(CampaignConfig.model_validate(data))
    assert "cannot be checked on this machine" in warning


def test_slow_oracles_are_checked_on_one_solid_of_the_chemical_space(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = small_config(Path("unused")).oracle.reference
    evaluate = EMTOracle.evaluate

    def slowly(self: EMTOracle, crystals, *, folder=None) -> list[Evaluation]:
        from dataclasses import replace

        return [replace(each, seconds=2.0) for each in evaluate(self, crystals)]

    fast = check(choice, extent="launch", elements=["Pd", "Au"])
    monkeypatch.setattr(EMTOracle, "evaluate", slowly)
    slow = check(choice, extent="launch", elements=["Pd", "Au"])
    assert {item.subject for item in slow.checks} == {"Pd"}
    assert slow.passed
    assert {"Pd", "Au", "Ni"} < {item.subject for item in fast.checks}


@pytest.mark.usefixtures("flawed")
def test_launch_refuses_before_it_makes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path / "run", "soft")
    file = tmp_path / "cuau.yaml"
    file.write_text("campaign: {chemical_space: Cu-Au, budget: {reference_calls: 1}}\n")
    (tmp_path / "oracle").mkdir()
    (tmp_path / "oracle" / "soft.yaml").write_text("name: soft\n")
    choices = ("oracle/screening=emt", "oracle/reference=soft", "generator=random_search")
    command = ("launch", str(file), *choices, f"run_dir={settings.run_dir}", "--config-dir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["discovery", *command])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "reference oracle soft fails" in error
    assert "oracle.check=warn" in error
    assert not settings.run_dir.exists()
