"""The pages, as cards of blocks: what is said and shown of a campaign, in which order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from pymatgen.util.string import unicodeify, unicodeify_spacegroup

from discovery.calibration import Reliability
from discovery.dashboard import figures
from discovery.dashboard.blocks import Block, Card, Downloads, Link, Meter, Plot, Table, Text, Tile, Tiles, Tone
from discovery.dashboard.figures import Cost
from discovery.dashboard.views import (
    MAX_CALIBRATED,
    MAX_DISCOVERIES,
    CrystalView,
    Discovery,
    Forecast,
    HullDiagram,
    OracleCheck,
    Overview,
    Shape,
    Summary,
    Trust,
)
from discovery.types import Evaluation, State

STATE_TONES: Mapping[str, Tone] = {
    "running": "good",
    "finished": "good",
    "created": "plain",
    "paused": "fair",
    "interrupted": "fair",
    "failed": "bad",
}

KINDS = {"reference_calls": "reference calculations", "core_hours": "core-hours", "wall_hours": "wall hours"}

WAITING = {
    State.SAMPLED: "at the gate",
    State.ADMITTED: "in or waiting for screening",
    State.SCREENED: "eligible for selection",
    State.SELECTED: "in or waiting for the reference oracle",
    State.COMPUTED: "awaiting a verdict",
}

GPA_PER_EV_A3 = 160.21766208


def overview_page(view: Overview, cost: Cost = "reference_calls") -> list[Card]:
    """Return what was found, how sure that is, what it cost and what happens now."""
    now = view.summary
    return [
        Card("At a glance", [Tiles(_tiles(view))], width="full"),
        Card("Hull growth", [_growth(view, cost)], width="full"),
        Card("Now", [*_now(view)]),
        Card("Hit rate", [_hit_rate(view)]),
        Card("Budget", [*_budget(view)]),
        Card("From sampled to stable", [*_funnel(view)]),
        Card("Health", [*_health(view)]),
        Card("Campaign", [_settings(now)]),
    ]


def _tiles(view: Overview) -> list[Tile]:
    now = view.summary
    calls, hours = now.budget.spent.get("reference_calls", 0.0), now.budget.spent.get("core_hours", 0.0)
    limit = now.budget.limit.get("reference_calls")
    judged = sum(rate.judged for rate in view.hits)
    stable = sum(rate.stable for rate in view.hits)
    found = view.growth[-1].discovered if view.growth else 0
    return [
        Tile("new phases on the hull", str(found), f"e_above_hull = 0, {_scale(now)}", "good" if found else "plain"),
        Tile("hit rate", f"{stable / judged:.0%}" if judged else "–", f"{stable} of {judged} verdicts were stable"),
        Tile("reference calculations", f"{calls:.0f}", f"of {limit:g} allowed" if limit is not None else "no limit"),
        Tile("core-hours", f"{hours:.3g}", "all oracles, reference phases included"),
        Tile("candidates", f"{view.funnel['sampled']:,}", f"{view.funnel['in_flight']:,} in flight"),
        Tile("round", f"{now.round + 1} of {now.rounds}", f"{duration(now.seconds)} of wall time"),
    ]


def _scale(now: Summary) -> str:
    return now.scales["reference"].id if "reference" in now.scales else "no reference scale yet"


def _growth(view: Overview, cost: Cost) -> Block:
    last = view.growth[-1] if view.growth else None
    said = f"{last.discovered} new phases on hull version {last.version}" if last else "no hull yet"
    return Plot("growth", figures.growth(view.growth, view.formulas, cost), f"Line of hull growth: {said}.")


def _hit_rate(view: Overview) -> Block:
    said = "; ".join(f"round {rate.round + 1}: {rate.stable} of {rate.judged} stable" for rate in view.hits[-12:])
    return Plot("hit-rate", figures.hit_rate(view.hits), f"Share of stable verdicts. {said or 'No verdicts yet.'}")


def _funnel(view: Overview) -> list[Block]:
    funnel = view.funnel
    ends = ("rejected", "failed", "passed_over", "judged", "in_flight")
    total = " + ".join(f"{funnel[end]:,} {end.replace('_', ' ')}" for end in ends)
    said = f"{funnel['sampled']:,} sampled = {total}."
    blocks: list[Block] = [
        Plot("funnel", figures.funnel(view), f"Funnel. {said}"),
        Text(f"{said} Bars are scaled by the square root."),
    ]
    rows = [
        (str(state).replace("_", " "), cause, f"{count:,}")
        for state, causes in view.losses.items()
        for cause, count in causes.items()
    ]
    if rows:
        blocks.append(Table(("lost as", "cause", "candidates"), rows, numbers=(2,)))
    return blocks


def _budget(view: Overview) -> list[Block]:
    blocks: list[Block] = []
    for forecast in view.forecasts:
        if forecast.limit:
            used, reserved = forecast.spent / forecast.limit, forecast.reserved / forecast.limit
            blocks.append(Meter(KINDS.get(forecast.kind, forecast.kind), used, reserved, _spent(forecast)))
    rows = [
        (
            KINDS.get(forecast.kind, forecast.kind),
            f"{forecast.spent:.4g}",
            f"{forecast.reserved:.3g}",
            f"{forecast.limit:g}" if forecast.limit is not None else "none",
            f"{forecast.projected:.3g}" if forecast.projected is not None else "–",
        )
        for forecast in view.forecasts
    ]
    blocks.append(Table(("", "spent", "reserved", "limit", "forecast"), rows, numbers=(1, 2, 3, 4)))
    blocks.append(Text("Forecast: spent by the end of all rounds if each costs what those complete have cost."))
    return blocks


def _spent(forecast: Forecast) -> str:
    text = f"{forecast.spent:.4g} of {forecast.limit:g}"
    if forecast.projected is not None and forecast.limit and forecast.projected > forecast.limit:
        text += ", will be used up before the last round"
    return text


def _now(view: Overview) -> list[Block]:
    now = view.summary
    state = f"{now.state}{': ' + now.message if now.message else ''}"
    blocks: list[Block] = [Text(state, STATE_TONES.get(now.state, "plain"))]
    if view.step:
        blocks.append(Text(f"Last finished step: {view.step}."))
    clock = time.time()
    rows = [
        (
            str(group.state),
            WAITING[group.state],
            f"{group.count:,}",
            duration(clock - group.since),
            Link("first", group.oldest),
        )
        for group in view.waiting
    ]
    if rows:
        blocks.append(Table(("state", "", "candidates", "longest for", ""), rows, numbers=(2, 3)))
    elif now.state == "running":
        blocks.append(Text("No candidate is in flight: reference phases are computed, or the generator is at work."))
    return blocks


def _health(view: Overview) -> list[Block]:
    blocks: list[Block] = [Text(problem, "bad") for problem in view.stuck]
    rows = [(role, kind.replace("_", " "), f"{count:,}") for (role, kind), count in sorted(view.failures.items())]
    if rows:
        blocks.append(Table(("oracle", "failure", "evaluations"), rows, numbers=(2,)))
    if not blocks:
        blocks.append(Text("No evaluation has failed and nothing is stuck.", "good"))
    return blocks


def _settings(now: Summary) -> Block:
    rows = [("chemical space", now.chemical_space), ("seed", str(now.seed)), *now.parts.items()]
    rows += [(f"{role} scale", scale.id) for role, scale in now.scales.items()]
    rows += [
        ("stable", f"e_above_hull ≤ {now.threshold:g} eV/atom"),
        ("metastable", f"e_above_hull ≤ {now.metastable_threshold:g} eV/atom"),
    ]
    if now.controls:
        rows.append(("control arm", ", ".join(now.controls)))
    return Table(("", ""), rows)


# Hull ---------------------------------------------------------------------------------------------------------------


def hull_note(diagram: HullDiagram | None) -> str:
    """Return one line on the energy scale and version of a diagram."""
    if diagram is None:
        return ""
    on_hull = sum(point.on_hull for point in diagram.points)
    new = sum(point.on_hull and point.discovered for point in diagram.points)
    return (
        f"{diagram.scale.id}, hull version {diagram.version}: {on_hull} phases on the hull, {new} of them discovered; "
        f"the lowest phase of each composition is drawn, up to {figures.DRAWN_ABOVE_HULL:g} eV/atom above."
    )


def hull_table(diagram: HullDiagram | None) -> Table:
    """Return the phases on the hull as a table, which says the same as the figure without eyes or mouse."""
    points = sorted(diagram.points if diagram else (), key=lambda point: (len(point.formula), point.formula))
    rows = [
        (
            Link(unicodeify(point.formula), point.id),
            "discovered" if point.discovered else "known",
            f"{point.formation_energy_per_atom:.3f}",
        )
        for point in points
        if point.on_hull
    ]
    return Table(("phase on the hull", "", "formation energy (eV/atom)"), rows, numbers=(2,))


# Discoveries --------------------------------------------------------------------------------------------------------


def discovery_table(rows: Sequence[Discovery], now: Summary) -> list[Block]:
    """Return the discovered phases as a plain table, for the report."""
    limits = (
        f"Stable: e_above_hull ≤ {now.threshold:g} eV/atom; metastable: ≤ {now.metastable_threshold:g} eV/atom; on "
        f"the newest reference hull ({_scale(now)}). At most {MAX_DISCOVERIES} phases, those closest to it."
    )
    if not rows:
        return [Text(f"None yet. {limits}")]
    return [
        Text(f"{limits} Energies in eV/atom."),
        Table(
            (
                "formula",
                "space group",
                "verdict",
                "e_above_hull",
                "on screening hull",
                "decomposition energy",
                "formation energy",
                "Å³/atom",
                "novelty",
                "round",
                "checkpoint",
                "core-hours",
                "id",
            ),
            [
                (
                    Link(unicodeify(row.formula), row.id),
                    unicodeify_spacegroup(row.spacegroup),
                    f"{row.stability} (≤ {now.threshold if row.stability == 'stable' else now.metastable_threshold:g})",
                    f"{row.e_above_hull:.3f}",
                    number(row.e_above_hull_screening),
                    f"{row.decomposition_energy:.3f}",
                    f"{row.formation_energy_per_atom:.3f}",
                    f"{row.volume_per_atom:.2f}",
                    row.novelty,
                    str(row.round + 1) if row.round is not None else "–",
                    row.checkpoint or "–",
                    f"{row.core_hours:.3g}",
                    row.id,
                )
                for row in rows
            ],
            numbers=(3, 4, 5, 6, 7, 9, 11),
        ),
    ]


# One crystal --------------------------------------------------------------------------------------------------------


def crystal_page(view: CrystalView) -> list[Card]:
    """Return one crystal: its shapes, its place on both hulls, where it came from and what it cost."""
    cards = [Card("Place", [Tiles(_place(view)), Downloads(view.id)], "full")]
    cards += [
        Card(
            shape.name.capitalize(),
            [
                Plot(
                    f"shape-{index}",
                    figures.crystal(shape.crystal),
                    f"{view.formula}, {shape.name}, space group {shape.spacegroup}. Drag to turn it.",
                ),
                _geometry(shape),
            ],
            "third",
        )
        for index, shape in enumerate(view.shapes)
    ]
    cards.append(Card("Evaluations", [_evaluations(view.evaluations)], width="full"))
    if view.record is not None:
        cards.append(Card("Lineage", [*_lineage(view)], width="full"))
    return cards


def crystal_card(view: CrystalView) -> Card:
    """Return one crystal in short, as it was relaxed last; for the report."""
    shape = view.shapes[-1]
    described = f"{view.formula}, {shape.name}, space group {shape.spacegroup}."
    plot = Plot(_anchor(view.id), figures.crystal(shape.crystal), described)
    lineage = _lineage(view)[:1]
    title = f"{unicodeify(view.formula)}, {unicodeify_spacegroup(shape.spacegroup)}, {shape.name}"
    return Card(title, [plot, Tiles(_place(view)), _geometry(shape), *lineage])


def _anchor(id: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in id)


def _place(view: CrystalView) -> list[Tile]:
    tiles = []
    for role in ("reference", "screening"):
        if role in view.e_above_hull:
            note = f"newest hull, {view.evaluations[role].energy_scale.id}" if role in view.evaluations else ""
            tiles.append(Tile(f"e_above_hull, {role} oracle", f"{view.e_above_hull[role]:.3f} eV/atom", note))
    record = view.record
    if record is not None and record.verdict is not None:
        verdict = record.verdict
        tone: Tone = {"stable": "good", "metastable": "fair"}.get(str(verdict.stability), "plain")  # type: ignore[assignment]
        limit = verdict.threshold if verdict.stability == "stable" else verdict.metastable_threshold
        sign = ">" if verdict.stability == "unstable" else "≤"
        note = (
            f"{verdict.e_above_hull:.3f} {sign} {limit:g} eV/atom on hull version {verdict.hull_version}, when judged"
        )
        tiles.append(Tile("verdict", str(verdict.stability), note, tone))
        tiles.append(
            Tile(
                "decomposition energy",
                f"{verdict.decomposition_energy:.3f} eV/atom",
                "into " + " + ".join(unicodeify(formula) for formula in verdict.decomposition)
                if verdict.decomposition
                else "",
            )
        )
    elif record is not None:
        tiles.append(
            Tile("state", str(record.state).replace("_", " "), record.events[-1].cause if record.events else "")
        )
    tiles.append(Tile("origin", view.origin, view.id))
    return tiles


def _geometry(shape: Shape) -> Table:
    rows = [
        ("space group", unicodeify_spacegroup(shape.spacegroup)),
        ("a, b, c (Å)", ", ".join(f"{length:.3f}" for length in shape.lengths)),
        ("α, β, γ (°)", ", ".join(f"{angle:.1f}" for angle in shape.angles)),
        ("atoms in the cell", str(len(shape.crystal))),
        ("volume (Å³/atom)", f"{shape.volume_per_atom:.2f}"),
        ("density (g/cm³)", f"{shape.density:.2f}"),
    ]
    rows += [(f"shortest {pair} (Å)", f"{distance:.3f}") for pair, distance in list(shape.shortest.items())[:6]]
    return Table(("", ""), rows, numbers=(1,))


def _evaluations(evaluations: Mapping[str, Evaluation]) -> Block:
    if not evaluations:
        return Text("Not evaluated yet.")
    rows = []
    for role, evaluation in sorted(evaluations.items(), reverse=True):
        failure = evaluation.failure
        force = abs(evaluation.forces).max() if evaluation.forces is not None and evaluation.forces.size else None
        stress = abs(evaluation.stress).max() * GPA_PER_EV_A3 if evaluation.stress is not None else None
        rows.append(
            (
                role,
                evaluation.energy_scale.id,
                f"{evaluation.energy_per_atom:.4f}" if evaluation.ok else "–",
                f"{failure.kind}: {failure.message}"
                if failure
                else "converged"
                if evaluation.converged
                else "not converged",
                number(force),
                number(stress, ".2f"),
                f"{evaluation.seconds:.1f} s × {evaluation.cores}",
            )
        )
    header = (
        "oracle",
        "energy scale",
        "energy (eV/atom)",
        "outcome",
        "largest force (eV/Å)",
        "largest stress (GPa)",
        "time × cores",
    )
    return Table(header, rows, numbers=(2, 4, 5, 6))


def _lineage(view: CrystalView) -> list[Block]:
    record = view.record
    if record is None:
        return []
    facts = [
        ("target", f"{record.target.label}, sample {record.sample + 1} of {record.target.n_samples}"),
        ("asked for because", record.target.reason or "–"),
        ("seed of the target", str(record.seed)),
        ("generator checkpoint", record.checkpoint or "a generator without weights"),
        ("learned into", ", ".join(view.learned_into) or "no checkpoint"),
    ]
    start = record.events[0].time if record.events else 0.0
    events = [
        (
            str(event.state).replace("_", " "),
            event.cause,
            f"+{duration(event.time - start)}",
            f"{event.core_seconds:.3g}",
        )
        for event in record.events
    ]
    return [
        Table(("", ""), facts),
        Table(("state", "cause", "after", "core-seconds"), events, numbers=(2, 3)),
    ]


# Trust --------------------------------------------------------------------------------------------------------------


def trust_page(view: Trust) -> list[Card]:
    """Return what the results can be trusted by."""
    errors = view.parity.errors()
    said = f"mean absolute error {errors[0][2]:.3f} eV/atom of {errors[0][1]} candidates" if errors else "no pairs yet"
    blocks: list[Block] = [
        Plot("parity", figures.parity(view.parity), f"Screening against reference formation energies: {said}.")
    ]
    if errors:
        blocks.append(
            Table(
                ("chemical system", "n", "MAE", "RMSE", "mean difference"),
                [(name, str(n), f"{mae:.3f}", f"{rmse:.3f}", f"{bias:+.3f}") for name, n, mae, rmse, bias in errors],
                numbers=(1, 2, 3, 4),
            )
        )
        blocks.append(
            Text(
                "Formation energies in eV/atom, each on its own scale and against its own elements. Only selected "
                "candidates are computed by both, so the errors are those of the low-energy tail."
            )
        )
    cards = [Card("Screening against reference oracle", blocks, width="full")]
    cards.append(Card("Calibration of the selection", _calibration(view.calibration), width="full"))
    cards.append(Card("Oracle checks", _checks(view.checks), width="full"))
    cards.append(Card("Generator", [*_checkpoints(view)], width="full"))
    return cards


def _calibration(found: Reliability | None) -> list[Block]:
    if found is None:
        return [Text(f"Not computed for campaigns of more than {MAX_CALIBRATED:,} candidates.")]
    if not found.predictions:
        return [Text("No selected candidate has been judged yet.")]
    brier, base = found.brier(), found.base_rate_brier()
    said = (
        f"Brier score {brier:.3f} of {len(found.predictions)} predictions; always predicting the share that came true "
        f"scores {base:.3f}"
    )
    return [
        Plot("calibration", figures.calibration(found), f"Reliability curve. {said}."),
        Text(f"{said}. Made anew from what was known when each candidate was selected; smaller is better."),
    ]


def _checks(checks: Sequence[OracleCheck]) -> list[Block]:
    blocks: list[Block] = []
    for one in checks:
        failed = sum(not passed for *_, passed in one.rows)
        verdict = "passed" if one.passed else f"failed: {failed} of {len(one.rows)} out of tolerance"
        blocks.append(Text(f"{one.role} oracle, {one.extent} check: {verdict}", "good" if one.passed else "bad"))
        rows = [(what, off, limit, "yes" if passed else "no") for what, off, limit, passed in one.rows]
        blocks.append(Table(("", "deviation", "tolerance", "passed"), rows, numbers=(1, 2)))
    return blocks or [Text("No check of these oracles is remembered on this machine; see discovery check.")]


def _checkpoints(view: Trust) -> list[Block]:
    if not view.checkpoints:
        return [Text("The generator has no weights and cannot learn.")]
    blocks: list[Block] = []
    figure = figures.losses(view.checkpoints)
    if figure is not None:
        blocks.append(Plot("losses", figure, "Losses recorded with each checkpoint."))
    rows: list[tuple[str | Link, ...]] = []
    for one in view.checkpoints:
        metrics = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in one.checkpoint.metrics.items())
        kept = "in use" if one.accepted else "refused, parent kept"
        rows.append((one.id, one.checkpoint.sha256[:12], (one.checkpoint.parent or "–")[:12], kept, metrics))
    blocks.append(Table(("checkpoint", "sha256", "parent", "", "metrics"), rows))
    learned = [
        (one.id, Link(unicodeify(view.formulas.get(id, id)), id), id)
        for one in view.checkpoints
        for id in one.checkpoint.trained_on
    ]
    if learned:
        blocks.append(Table(("learned into", "crystal", "id"), learned))
    else:
        blocks.append(Text("Nothing has been learned from yet."))
    return blocks


# Compare ------------------------------------------------------------------------------------------------------------


def compare_page(views: Sequence[tuple[str, Overview]], cost: Cost = "reference_calls") -> list[Card]:
    """Return several campaigns on one plot, control arms dotted, and their numbers side by side."""
    rows = []
    for name, view in views:
        now = view.summary
        judged, stable = sum(rate.judged for rate in view.hits), sum(rate.stable for rate in view.hits)
        calls = now.budget.spent.get("reference_calls", 0.0)
        found = view.growth[-1].discovered if view.growth else 0
        rows.append(
            (
                name,
                now.state,
                now.chemical_space,
                now.parts["agent"],
                now.parts["generator"],
                ", ".join(now.controls) or "–",
                str(found),
                f"{stable / judged:.0%} of {judged}" if judged else "–",
                f"{calls:.0f}",
                f"{found / calls:.3f}" if calls else "–",
                f"{now.budget.spent.get('core_hours', 0.0):.3g}",
            )
        )
    header = (
        "campaign",
        "state",
        "space",
        "agent",
        "generator",
        "control arm",
        "new on the hull",
        "hit rate",
        "reference calculations",
        "new per calculation",
        "core-hours",
    )
    scales = {view.summary.scales["reference"].id for _, view in views if "reference" in view.summary.scales}
    spaces = {view.summary.chemical_space for _, view in views}
    notes: list[Block] = []
    if len(scales) > 1 or len(spaces) > 1:
        notes.append(
            Text(
                "These campaigns differ in chemical space or in the energy scale of their verdicts: their counts are "
                "no fair comparison of agents or generators.",
                "fair",
            )
        )
    described = "; ".join(f"{row[0]}: {row[6]} new phases after {row[8]} calculations" for row in rows)
    plot = Plot("comparison", figures.comparison(views, cost), f"Hull growth of all campaigns. {described}.")
    return [
        Card("Hull growth", [plot, *notes], width="full"),
        Card("Side by side", [Table(header, rows, numbers=(6, 7, 8, 9, 10))], width="full"),
    ]


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number, or a dash if there is none."""
    return format(value, form) if value is not None else "–"
