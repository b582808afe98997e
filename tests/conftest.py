"""What all tests share."""

import os
from pathlib import Path

import pytest

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # read by numerical libraries when a test module imports them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the quickstart, which takes longest, so that no process is left with it alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_quickstart.py")


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's own cache out of the tests, also out of fixtures that many tests share."""
    os.environ["DISCOVERY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_cache(_session_cache: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own, made when it is first written."""
    name = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
    folder = Path(os.environ["DISCOVERY_CACHE"]) / f"{abs(hash(name)):x}"
    monkeypatch.setenv("DISCOVERY_CACHE", str(folder))
