"""What a campaign shows to people while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class ConsoleProgress:
    """Shows rounds, counts of the stages and the growth of the hull; silent where there is no terminal.

    Parameters
    ----------
    console
        Where to show it.
    rounds
        Rounds of the campaign.
    quiet
        Show nothing.
    """

    def __init__(self, console: Console, rounds: int, *, quiet: bool = False) -> None:
        self._rounds = rounds
        self._counts: Counter[str] = Counter()
        self._round = "reference phases"
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, counts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """Take note of one event."""
        if event == "proposed":
            self._round = f"round {values['round'] + 1}/{self._rounds}"
            self._counts.clear()
            self._say(f"{self._round}: {len(values['targets'])} targets: {', '.join(values['targets'])}")
        elif event in ("screened", "computed") and values["failure"] is not None:
            self._counts["failed"] += 1
        elif event == "judged":
            self._say(
                f"  {values['candidate']}  {values['formula']}: {values['stability']}, {values['e_above_hull']:.3f} "
                f"eV/atom above hull version {values['hull_version']} (stable up to {values['threshold']:g})"
            )
        elif event == "none_selected":
            self._say(f"  {values['reason']}")
        elif event == "learned":
            self._say(f"  the generator has learned: checkpoint {values['sha256'][:12]}")
        elif event == "hull":
            self._say(f"{values['role']} hull of {values['phases']} reference phases, scale {values['energy_scale']}")
        self._counts[event.replace("_", " ")] += 1
        shown = {name: count for name, count in self._counts.items() if name not in ("started", "proposed", "hull")}
        counts = " · ".join(f"{name} {count}" for name, count in shown.items())
        self._progress.update(self._task, description=self._round, counts=counts)

    def _say(self, line: str) -> None:
        if not self._progress.disable:
            self._progress.console.print(line, highlight=False)
