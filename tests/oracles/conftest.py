"""Crystals and models that the oracle tests share."""

import gzip
import importlib.util
import os
import shutil
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("DISCOVERY_SHARED", Path(__file__).parents[3] / "shared"))
MATGL_MODEL = SHARED / "models" / "TensorNet-MatPES-PBE-v2025.1-PES"


@pytest.fixture(scope="session")
def matgl_model() -> str:
    """Folder of real matgl weights."""
    if not MATGL_MODEL.is_dir():
        pytest.skip(f"no matgl weights at {MATGL_MODEL}; set DISCOVERY_SHARED to the folder that holds models/")
    return str(MATGL_MODEL)


@pytest.fixture(scope="session")
def gpaw_installed() -> None:
    """Skip without GPAW."""
    if importlib.util.find_spec("gpaw") is None:
        pytest.skip("GPAW is not installed; run `make setup`")


@pytest.fixture(scope="session")
def sevennet_installed() -> None:
    """Skip without SevenNet."""
    if importlib.util.find_spec("sevenn") is None:
        pytest.skip("SevenNet is not installed; `pip install 'discovery-engine[sevennet]'`")


@pytest.fixture(scope="session")
def abinit_installed() -> None:
    """Skip without ABINIT."""
    if shutil.which("abinit") is None:
        pytest.skip("ABINIT is not installed; `apt-get install --no-install-recommends abinit`")
    if importlib.util.find_spec("gpaw_data") is None:
        pytest.skip("ABINIT has no PAW files; `pip install gpaw-data`")


DEBIAN_SILICON = Path("/usr/share/doc/quantum-espresso/examples/XSpectra/pseudo/Si_PBE_USPP.UPF.gz")


@pytest.fixture(scope="session")
def pseudopotentials(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with a PBE pseudopotential of silicon for Quantum ESPRESSO."""
    if shutil.which("pw.x") is None:
        pytest.skip("Quantum ESPRESSO is not installed; `apt-get install --no-install-recommends quantum-espresso`")
    given = os.environ.get("ESPRESSO_PSEUDO")
    if given is not None:
        return given
    if not DEBIAN_SILICON.exists():
        pytest.skip("no PBE pseudopotential of Si; set ESPRESSO_PSEUDO to a folder, or install quantum-espresso-data")
    folder = tmp_path_factory.mktemp("upf")
    (folder / "Si.UPF").write_bytes(gzip.decompress(DEBIAN_SILICON.read_bytes()))
    return str(folder)
