import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared():
    folder = Path(os.environ.get("DISCOVERY_SHARED", Path(__file__).parents[4] / "shared"))
    if not (folder / "reference/cdvae/golden.json").exists():
        pytest.skip(f"{folder} has no reference/cdvae/golden.json; set DISCOVERY_SHARED")
    return folder
