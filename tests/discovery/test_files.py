"""Atomic writing: all or nothing, and nothing left over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from discovery.files import replacing, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "Å")
    write_atomically(path, "second")
    assert path.read_text(encoding="utf-8") == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_what_fails_half_way_leaves_the_former_content(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("before")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_process_that_dies_half_way_leaves_the_former_content(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("before")
    code = (
        "import os, sys; from pathlib import Path; from discovery.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary: temporary.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert path.read_text() == "before"
    write_atomically(path, "after")
    assert path.read_text() == "after"


def test_model_code_needs_torch_and_numpy_only() -> None:
    code = "import sys, discovery.checkpoints; print({'platformdirs', 'pymatgen', 'ray', 'ase'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
