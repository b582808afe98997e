"""The example of docs/oracles.md: a package of its own, installed, conforming and checked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the package as documented, into a folder of its own, and return an environment that has it."""
    text = (ROOT / "docs" / "oracles.md").read_text(encoding="utf-8")
    source, site = tmp_path_factory.mktemp("morse-oracle"), tmp_path_factory.mktemp("site")
    for name, language in (("pyproject.toml", "toml"), ("morse_oracle.py", "python")):
        (content,) = re.findall(rf"`{name}`:\n\n```{language}\n(.*?)```", text, re.DOTALL)
        (source / name).write_text(content, encoding="utf-8")
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True)
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}


def test_it_conforms(environment: dict[str, str]) -> None:
    command = ["pytest", "-q", "-p", "no:cacheprovider", "tests/oracles/test_conformance.py", "-k", "morse"]
    process = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout
    passed = re.search(r"(\d+) passed", process.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 12
    assert "skipped" not in process.stdout


def test_it_passes_its_check(environment: dict[str, str], tmp_path: Path) -> None:
    """Its parameters were fitted to copper, so that copper comes out right."""
    (tmp_path / "oracle").mkdir()
    (tmp_path / "oracle" / "morse.yaml").write_text("name: morse\n")
    command = ["discovery", "check", "morse", "--config-dir", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "can be trusted" in process.stdout
