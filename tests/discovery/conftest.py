from __future__ import annotations

import pytest

from tests.discovery import plugins


@pytest.fixture(scope="session", autouse=True)
def cheap_plugins(tmp_path_factory: pytest.TempPathFactory) -> None:
    plugins.install(tmp_path_factory.mktemp("plugins"))
