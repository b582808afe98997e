"""The report of a campaign: as Markdown for the terminal, and as one HTML file with the pages of the dashboard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from discovery.calibration import Reliability, reliability
from discovery.hull import Hull
from discovery.runfolder import RunFolder
from discovery.status import DiscoveredPhase, Status, discovered_phases, read_status
from discovery.store import Store
from discovery.types import State


def write_report(run_dir: Path) -> str:
    """Write ``report.md`` and ``report.html`` into the run folder and return the text of the former."""
    text = make_report(run_dir)
    folder = RunFolder(run_dir)
    folder.report.write_text(text)
    folder.report_page.write_text(make_page(run_dir))
    return text


def make_page(run_dir: Path) -> str:
    """Return the report as one HTML file: what the dashboard shows, with crystals of the most stable discoveries."""
    from discovery.dashboard import figures, pages, views
    from discovery.dashboard.blocks import Block, Card, Plot, Text
    from discovery.dashboard.document import Section, document
    from discovery.dashboard.source import Source

    source = Source.open(run_dir)
    try:
        overview = views.overview(source)
        now = overview.summary
        hulls = []
        for role, scale in reversed(list(now.scales.items())):
            for system in views.drawable_systems(now.elements)[:1]:
                stages = [
                    (label, diagram)
                    for label, version in _thinned(views.hull_stages(source, role))
                    if (diagram := views.hull_diagram(source, role, system, version)) is not None
                ]
                if stages:
                    newest = stages[-1][1]
                    blocks: list[Block] = [
                        Plot(role, figures.hull_through_rounds(stages), pages.hull_note(newest)),
                        Text(pages.hull_note(newest)),
                        pages.hull_table(newest),
                    ]
                    hulls.append(Card(f"{role} oracle ({scale.id})", blocks, width="full"))
        found = views.discoveries(source)
        crystals = [view for row in found[:_CRYSTALS_SHOWN] if (view := views.crystal_view(source, row.id))]
        sections = [
            Section("Overview", pages.overview_page(overview)),
            Section("Hull", hulls),
            Section("Discoveries", [Card("Discovered phases", pages.discovery_table(found, now), width="full")]),
            Section("Crystals", [pages.crystal_card(view) for view in crystals]),
            Section("Trust", pages.trust_page(views.trust(source))),
        ]
    finally:
        source.close()
    lead = f"{now.chemical_space}, seed {now.seed}; {now.state}{': ' + now.message if now.message else ''}."
    return document(f"Campaign {now.name}", lead, [section for section in sections if section.cards])


_CRYSTALS_SHOWN = 6
"""Discovered phases of which the page shows the crystal."""

_STAGES_SHOWN = 12
"""Versions of a hull through which the page's slider goes."""


def _thinned(stages: Sequence[tuple[str, int]]) -> Sequence[tuple[str, int]]:
    if len(stages) <= _STAGES_SHOWN:
        return stages
    return [stages[index] for index in np.linspace(0, len(stages) - 1, _STAGES_SHOWN).round().astype(int)]


def make_report(run_dir: Path) -> str:
    """Return the report of the campaign in `run_dir` as Markdown."""
    status = read_status(run_dir)
    store = RunFolder(run_dir).read_store()
    try:
        sections = [
            _summary(status, store),
            _discoveries(status, store),
            _hulls(store),
            _funnel(status, store),
            _errors(store),
            calibration_section(reliability(store)),
            _checkpoints(status),
            _cost(status, store),
        ]
    finally:
        store.close()
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(status: Status, store: Store) -> str:
    campaign = store.campaign()
    reason = f" ({status.message})" if status.message else ""
    return (
        f"# {status.name}\n\n"
        f"Chemical space {campaign.config['campaign']['chemical_space']}, seed {status.seed}. The campaign is "
        f"{status.state}{reason} after {status.round + 1} of {status.rounds} rounds and {_duration(status.seconds)}."
    )


def _discoveries(status: Status, store: Store) -> str:
    metastable = store.campaign().config["campaign"]["metastable_threshold"]
    title = "## Discovered phases"
    limits = (
        f"Stable: e_above_hull ≤ {status.threshold:g} eV/atom; metastable: ≤ {metastable:g} eV/atom; both on the "
        "reference hull."
    )
    phases = discovered_phases(store, metastable)
    if not phases:
        return f"{title}\n\nNone. {limits}"
    screening = store.hull("screening")
    rows = [
        (
            found.phase.formula,
            found.spacegroup,
            f"{found.verdict.stability} (≤ {_threshold(found):g})",
            _number(found.verdict.e_above_hull),
            _number(_screening_distance(screening, found.phase.id)),
            _number(found.verdict.decomposition_energy),
            _number(found.verdict.formation_energy_per_atom),
            found.phase.id,
        )
        for found in phases
    ]
    header = (
        "formula",
        "space group",
        "verdict",
        "e_above_hull",
        "e_above_hull (screening)",
        "decomposition energy",
        "formation energy",
        "id",
    )
    return f"{title}\n\n{limits} Energies in eV/atom.\n\n{_table(header, rows)}"


def _threshold(found: DiscoveredPhase) -> float:
    verdict = found.verdict
    return verdict.threshold if verdict.stability == "stable" else verdict.metastable_threshold


def _screening_distance(hull: Hull, phase_id: str) -> float | None:
    phase = next((phase for phase in hull.phases if phase.id == phase_id), None)
    placed = hull.decompose(phase.composition, phase.energy_per_atom) if phase is not None else None
    return placed.e_above_hull if placed is not None else None


def _hulls(store: Store) -> str:
    rows = []
    for role, scale in store.energy_scales().items():
        versions = store.hull_versions(role)
        if versions:
            before, after = (_formulas(store.hull(role, version.version)) for version in (versions[0], versions[-1]))
            rows.append((role, scale.id, "1", before))
            rows.append((role, scale.id, str(versions[-1].version), after))
    if not rows:
        return ""
    return "## Hull before and after\n\n" + _table(("oracle", "energy scale", "version", "stable phases"), rows)


def _formulas(hull: Hull) -> str:
    return ", ".join(sorted({phase.formula for phase in hull.stable_phases}))


def _funnel(status: Status, store: Store) -> str:
    funnel = status.funnel
    states = [state for state in State if state not in (State.REJECTED, State.FAILED, State.PASSED_OVER)]
    reached = _table(("state", "candidates"), [(str(state), str(funnel[state])) for state in states])
    total = " + ".join(f"{funnel[key]} {key.replace('_', ' ')}" for key in _ENDS)
    losses = [
        (str(state), cause, str(count))
        for state, causes in store.losses().items()
        for cause, count in causes.most_common()
    ]
    text = f"## Funnel\n\n{reached}\n\n{funnel['sampled']} sampled = {total}."
    if losses:
        text += "\n\n" + _table(("lost as", "cause", "candidates"), losses)
    return text


_ENDS = ("rejected", "failed", "passed_over", "judged", "in_flight")


def _errors(store: Store) -> str:
    """Compare the formation energies of both scales, each against its own elements."""
    judged = store.candidates({State.JUDGED, State.LEARNED})
    pairs = [
        (candidate.screening_formation_energy_per_atom, candidate.verdict.formation_energy_per_atom)
        for candidate in judged
        if candidate.screening_formation_energy_per_atom is not None and candidate.verdict is not None
    ]
    if not pairs:
        return ""
    error = np.subtract(*np.array(pairs).T)
    return (
        "## Screening against reference oracle\n\n"
        f"Formation energies of {len(pairs)} judged candidates, each on its own scale: mean absolute error "
        f"{np.abs(error).mean():.4f}, root mean square {math.sqrt((error**2).mean()):.4f}, mean of the difference"
        f" {error.mean():+.4f} eV/atom."
    )


def calibration_section(found: Reliability) -> str:
    """Return predicted probabilities of being stable against what happened, as Markdown; nothing without any."""
    if not found.predictions:
        return ""
    summary = (
        f"Probability, when {len(found.predictions)} candidates were selected, that each would be stable, from the "
        f"pairs of energies known then: Brier score {found.brier():.3f} (0 is perfect), against "
        f"{found.base_rate_brier():.3f} for always predicting the share that came true."
    )
    curve = [(str(one.n), f"{one.probability:.2f}", f"{one.came_true:.2f}") for one in found.curve()]
    scores = [
        (str(selection), str(sum(p.selection == selection for p in found.predictions)), f"{found.brier(selection):.3f}")
        for selection in found.selections
    ]
    return (
        f"## Calibration\n\n{summary}\n\n{_table(('candidates', 'mean probability', 'share stable'), curve)}\n\n"
        f"{_table(('selection', 'candidates', 'Brier score'), scores)}"
    )


def _checkpoints(status: Status) -> str:
    if not status.checkpoints:
        return ""
    rows = [
        (
            checkpoint["id"],
            checkpoint["sha256"][:12],
            (checkpoint["parent"] or "–")[:12],
            str(len(checkpoint["trained_on"])),
            checkpoint["reason"] or "–",
            "yes" if checkpoint["accepted"] else "no, parent kept",
            ", ".join(f"{name} {value:.4g}" for name, value in checkpoint["metrics"].items()),
        )
        for checkpoint in status.checkpoints
    ]
    header = ("checkpoint", "sha256", "parent", "crystals learned", "why then", "in use", "metrics")
    return "## Generator checkpoints\n\n" + _table(header, rows)


def _cost(status: Status, store: Store) -> str:
    budget = status.budget
    spent = _table(
        ("budget", "spent", "reserved", "limit"),
        [
            (kind, f"{amount:.4g}", f"{budget.reserved.get(kind, 0.0):.4g}", _number(budget.limit.get(kind), "none"))
            for kind, amount in sorted(budget.spent.items())
        ],
    )
    oracles = _table(
        ("oracle", "evaluations, reference phases included", "seconds", "core-hours"),
        [
            (role, str(count), f"{seconds:.1f}", f"{hours:.4f}")
            for role, (count, seconds, hours) in sorted(store.costs().items())
        ],
    )
    stages: dict[str, float] = {}
    for (_, step), seconds in store.steps().items():
        stages[step] = stages.get(step, 0.0) + seconds
    walls = _table(
        ("stage", "wall seconds, all rounds"), [(step, f"{seconds:.1f}") for step, seconds in stages.items()]
    )
    return f"## Cost\n\n{spent}\n\n{oracles}\n\n{walls}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float | None, missing: str = "–") -> str:
    return f"{value:.4g}" if value is not None else missing


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
