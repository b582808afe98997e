"""The log of a campaign: one JSON object per line, with ids, without secrets, rotated by size."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.logging import RichHandler

from discovery.errors import RunError
from discovery.store.urls import masked

if TYPE_CHECKING:
    from discovery.config import LogConfig

_SECRET_NAMES = ("KEY", "TOKEN", "PASSWORD", "SECRET")
_SHORTEST_SECRET = 6
"""Values of fewer characters are not looked for: they would blot out words that are no secrets."""
_LEVELS = {"failed": logging.ERROR, "interrupted": logging.WARNING, "none_selected": logging.WARNING}
"""Events that are more than information; so is, as a warning, each that carries a failure."""
_logger = logging.getLogger("discovery")


class EventLog:
    """Writes events, and what libraries warn of, to ``campaign.log``; a context manager.

    Parameters
    ----------
    path
        The file; when it is full, it becomes ``campaign.log.1``, and so on.
    campaign
        Name of the campaign, which stands in every line beside the driver's process id.
    config
        Level and size.
    console
        Where to show the same lines to people, or None.

    Notes
    -----
    An event is a line with ``time`` (seconds since the epoch), ``level``, ``campaign``, ``driver``, ``event`` and the
    event's own values. What a library logs is the event ``message``, with ``logger`` and ``message``.
    """

    def __init__(self, path: Path, campaign: str, config: LogConfig, console: Console | None = None) -> None:
        self._level = logging.getLevelNamesMapping()[config.level.upper()]
        file = _File(path, maxBytes=round(config.max_megabytes * 1e6), backupCount=config.files - 1, encoding="utf-8")
        file.setFormatter(_JSONLines(campaign))
        self._handlers: list[logging.Handler] = [file]
        if console is not None:
            people = RichHandler(console=console, show_path=False, markup=False, highlighter=None)
            people.setFormatter(_Words())
            self._handlers.append(people)
        self._restore = ExitStack()

    def __enter__(self) -> Self:
        root = logging.getLogger()
        libraries = logging.INFO if self._level == logging.DEBUG else max(self._level, logging.WARNING)
        for logger, level in ((_logger, self._level), (root, libraries)):
            self._restore.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        for handler in self._handlers:
            root.addHandler(handler)
            self._restore.callback(handler.close)
            self._restore.callback(root.removeHandler, handler)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore.close()

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """Write one event."""
        level = logging.WARNING if values.get("failure") else _LEVELS.get(event, logging.INFO)
        _logger.log(level, event, extra={"values": values})


def redact(text: str) -> str:
    """Return `text` without passwords of URLs and without the values of secret environment variables."""
    text = masked(text)
    for secret in _secrets():
        text = text.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
    return text


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and any(word in name.upper() for word in _SECRET_NAMES):
            yield value


def _values(record: logging.LogRecord) -> dict[str, Any]:
    """Return an event's values, or what a library has logged."""
    values: Mapping[str, Any] | None = getattr(record, "values", None)
    if values is not None:
        return {"event": record.msg, **values}
    error = record.exc_info[1] if record.exc_info else None
    cause = {"error": f"{type(error).__name__}: {error}"} if error is not None else {}
    return {"event": "message", "logger": record.name, "message": record.getMessage(), **cause}


class _JSONLines(logging.Formatter):
    def __init__(self, campaign: str) -> None:
        super().__init__()
        self._campaign = campaign

    def format(self, record: logging.LogRecord) -> str:
        where = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "campaign": self._campaign,
            "driver": record.process,
        }
        return redact(json.dumps(where | _values(record), ensure_ascii=False, default=str))


class _Words(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = _values(record)
        return redact(" ".join([values.pop("event"), *(f"{name}={value}" for name, value in values.items())]))


class _File(RotatingFileHandler):
    """Opened when something is written, because the run folder may not be there yet."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, delay=True, **options)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """Tell who logs that the line could not be written; the standard handler prints a traceback and goes on."""
        raise RunError(
            f"{self.baseFilename} cannot be written; free disk space or make the run folder writable, then continue "
            "with `discovery resume`"
        )
