"""Crystals and models that the oracle tests share."""

import importlib.util
import os
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
