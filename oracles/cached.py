"""Another oracle whose answers are kept: what one campaign has computed, the next one reads."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pydantic import Field

from discovery.config import OracleChoice
from discovery.crystal import Crystal
from discovery.errors import RunError
from discovery.protocols import Oracle, PluginConfig
from discovery.types import EnergyScale, Evaluation

BUSY_SECONDS = 60.0
"""How long to wait for another process that writes."""


class CachedOracle:
    """Asks another oracle once for each crystal and keeps the answer, failures too, in a file.

    An answer belongs to the crystal's content, the oracle's energy scale and its options; another version of the oracle
    has another scale and begins anew. Several processes may use the file at once. Forces and stress are kept as well,
    and the seconds are those of the calculation.
    """

    class Config(PluginConfig):
        """Settings of the cached oracle."""

        path: Path = Field(description="SQLite file of the answers; made if it is not there.")
        oracle: OracleChoice = Field(description="Name of the oracle that is asked, with its options beside it.")

    def __init__(self, config: Config) -> None:
        self._config = config
        self._oracle: Oracle = config.oracle.create()
        self._options = json.dumps(config.oracle.model_dump(mode="json"), sort_keys=True)
        try:
            config.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS evaluation (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise RunError(
                f"{config.path} cannot be written ({error}); set the oracle's path to another file"
            ) from error

    @property
    def energy_scale(self) -> EnergyScale:
        """The scale of the oracle that is asked."""
        return self._oracle.energy_scale

    def evaluate(self, crystals: Sequence[Crystal], *, folder: Path | None = None) -> list[Evaluation]:
        """Return one evaluation per crystal, in order; those that are kept cost nothing."""
        keys = [self._key(crystal) for crystal in crystals]
        with closing(self._connect()) as connection:
            found = {key: answer for key in set(keys) if (answer := _read(connection, key)) is not None}
            missing = {key: crystal for key, crystal in zip(keys, crystals, strict=True) if key not in found}
            if missing:
                computed = self._oracle.evaluate(list(missing.values()), folder=folder)
                found |= dict(zip(missing, computed, strict=True))
                rows = [(key, json.dumps(found[key].to_dict())) for key in missing]
                with connection:
                    connection.executemany("INSERT OR IGNORE INTO evaluation VALUES (?, ?)", rows)
        return [found[key] for key in keys]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._config.path, timeout=BUSY_SECONDS)

    def _key(self, crystal: Crystal) -> str:
        text = f"{crystal.content_hash} {self.energy_scale.id} {self._options}"
        return hashlib.sha256(text.encode()).hexdigest()


def _read(connection: sqlite3.Connection, key: str) -> Evaluation | None:
    row = connection.execute("SELECT answer FROM evaluation WHERE key = ?", (key,)).fetchone()
    return Evaluation.from_dict(json.loads(row[0])) if row is not None else None
