"""The tutorial's commands exist, its campaign composes, and its steps work one after the other."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from ase.build import bulk
from pymatgen.io.ase import AseAtomsAdaptor
from typer.testing import CliRunner

from discovery.cli import app
from discovery.config import compose

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
CHEAP = [
    "oracle/screening=emt",
    "oracle/reference=emt",
    "oracle.screening.fmax=0.3",
    "oracle.check=skip",
    "campaign.chemical_space=Cu-Au",
    "campaign.rounds=1",
    "campaign.targets_per_round=1",
    "campaign.max_atoms=4",
    "agent.max_decomposition_energy=1",
    "references.prototypes=[zincblende]",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["discovery"]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (campaign,) = blocks("yaml")
    (tmp_path / "sulfides.yaml").write_text(campaign)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_understood(folder: Path) -> None:
    group = typer.main.get_command(app)
    asked = commands()
    assert {words[0] for words in asked} >= {"launch", "status", "dashboard", "report", "trace", "export"}
    for name, *arguments in asked:
        group.commands[name].make_context(name, list(arguments))
        if name == "launch":
            compose(arguments[0], [word for word in arguments[1:] if "=" in word])


def test_the_steps_work_one_after_the_other(folder: Path) -> None:
    cif = AseAtomsAdaptor.get_structure(bulk("CuAu", "cesiumchloride", 3.1)).to(fmt="cif")
    (folder / "known.csv").write_text(f'material_id,cif\nmp-1,"{cif}"\n')
    launch, *others = commands()
    run([*launch, *CHEAP])
    for words in others:
        if words[0] in ("status", "report", "calibration"):
            run(words)
        elif words[0] == "export":
            run([*words, "--all"])  # this space's stable phases may all be known
    assert (folder / "runs/sulfides/report.html").exists()
    assert list((folder / "found").glob("*.cif"))
    (snippet,) = blocks("python")
    exec(compile(snippet.replace('"Na", "Zn", "S"', '"Cu", "Au"'), PAGE.name, "exec"), {})  # noqa: S102


def run(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
