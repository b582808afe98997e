"""The dashboard: a local page that reads the stores of campaigns, with Dash.

What it shows is made in :mod:`discovery.dashboard.pages`; this module draws it and connects it with what the user does.
Nothing from the browser is trusted: campaigns and crystals are looked up by their names, columns and comparisons of a
table among those that exist, and no path or SQL is ever taken.
"""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlencode

import dash_ag_grid as dag
import flask
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from discovery import control
from discovery.dashboard import figures, pages, views
from discovery.dashboard.blocks import LONG, Block, Card, Downloads, Link, Meter, Plot, Table, Text, Tile, Tiles, rows
from discovery.dashboard.source import Source, Sources
from discovery.errors import DiscoveryError
from discovery.export import CRYSTAL_FORMATS, crystal_file
from discovery.store.queries import COLUMNS, Condition, Order
from discovery.store.store import ROLES

REFRESH_SECONDS = 2
"""How often a page asks whether something has changed."""

RESTS_PER_WORK = 10
"""How much longer than making a page takes it is left as it is, so that watching a large campaign costs little."""

PAGES = {"": "Overview", "hull": "Hull", "discoveries": "Discoveries", "candidates": "Candidates", "trust": "Trust"}
"""Pages of a campaign: the last part of their address, and their name."""

FORMAT_NAMES = {"cif": "CIF", "poscar": "POSCAR", "extxyz": "extxyz", "json": "JSON"}

GRAPH_CONFIG: Any = {"displayModeBar": False, "responsive": True, "scrollZoom": False}


def create_app(sources: Sources, token: str | None = None) -> Dash:
    """Return the dashboard of some campaigns.

    Parameters
    ----------
    sources
        The campaigns.
    token
        What a user must give to pause, resume or stop a campaign; without it there are no such controls.
    """
    app = Dash("discovery.dashboard", title="discovery", update_title="", suppress_callback_exceptions=True)
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = lambda: _frame(sources)
    _register_pages(app, sources, token is not None)
    _register_hull(app, sources)
    _register_tables(app, sources)
    if token is not None:
        _register_control(app, sources, token)
    _register_downloads(app.server, sources)
    _register_policy(app)
    return app


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(18)


def only_hosts(app: Dash, hosts: Sequence[str]) -> None:
    """Refuse requests addressed to other hosts, so that a page elsewhere cannot read this one by a name of its own."""

    @app.server.before_request
    def check() -> flask.Response | None:
        name = flask.request.host.rsplit(":", 1)[0].strip("[]")
        return None if name in hosts else flask.Response("unknown host", 403)


def _register_policy(app: Dash) -> None:
    """Tell the browser that pages run the dashboard's own scripts alone and load nothing from elsewhere."""
    policy = "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' {' '.join(app.csp_hashes())}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )

    @app.server.after_request
    def add(response: flask.Response) -> flask.Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


# Frame and pages ----------------------------------------------------------------------------------------------------


def _frame(sources: Sources) -> html.Div:
    return html.Div(
        [
            html.A("Skip to content", href="#page", className="skip"),
            dcc.Location(id="url"),
            dcc.Interval(id="tick", interval=REFRESH_SECONDS * 1000),
            html.Header(
                [
                    dcc.Link("discovery", href="/", className="brand"),
                    html.Nav(id="nav", **_aria(label="Pages")),
                    dcc.RadioItems(
                        ["auto", "light", "dark"], "auto", id="theme", className="theme", inline=True, persistence=True
                    ),
                ],
                className="bar",
            ),
            html.Main(html.P(f"Reading {len(sources.all())} campaigns …", className="soft"), id="page"),
        ]
    )


def _register_pages(app: Dash, sources: Sources, controllable: bool) -> None:
    @app.callback(Output("nav", "children"), Output("page", "children"), Input("url", "pathname"))
    def show(path: str | None) -> tuple[Any, Any]:
        key, page, id = _route(path)
        known = sources.all()
        navigation = _navigation(known, key, page)
        if not key or key == "compare":
            return navigation, _index_shell(sources.problems) if not key else _compare_shell()
        if key not in known or (page not in PAGES and page != "crystal"):
            return navigation, [html.H1("Not found"), html.P(["There is no such page. ", dcc.Link("Start", href="/")])]
        source = known[key]
        return navigation, [_title(source), *_shell(source, page, id, controllable)]

    @app.callback(
        Output("head", "children"),
        Output("live", "children"),
        Output("seen", "data"),
        Input("tick", "n_intervals"),
        Input("cost", "value"),
        State("url", "pathname"),
        State("seen", "data"),
        running=[(Output("tick", "disabled"), True, False)],
    )
    def refresh(_tick: int | None, cost: str, path: str | None, seen: Any) -> tuple[Any, Any, Any]:
        key, page, _ = _route(path)
        known = sources.all()
        cost = cost if cost in figures.COSTS else "reference_calls"
        shown = [known[key]] if key in known else list(known.values())
        seen = seen if isinstance(seen, dict) else {}
        began = time.monotonic()
        resting = began < seen.get("again", 0.0) and [path, cost] == seen.get("asked")
        try:
            state = [[source.key, list(source.queries.revision()), _pulse(source)] for source in shown]
            if resting or (state, [path, cost]) == (seen.get("state"), seen.get("asked")):
                return no_update, no_update, no_update
            head, live = _live(shown, key, page, cost)  # type: ignore[arg-type]
            ended = time.monotonic()
            again = ended + RESTS_PER_WORK * (ended - began)
            return head, live, {"asked": [path, cost], "state": state, "again": again}
        except DiscoveryError as error:
            return "", html.P(str(error), className="bad"), None

    @app.callback(
        Output("badge", "children"),
        Output("badge", "className"),
        Input("tick", "n_intervals"),
        State("url", "pathname"),
    )
    def badge(_tick: int | None, path: str | None) -> tuple[Any, str]:
        key, *_ = _route(path)
        source = sources.all().get(key)
        if source is None:
            return no_update, no_update  # type: ignore[return-value]
        now = views.summary(source)
        return _state_text(now), f"badge {pages.STATE_TONES.get(now.state, 'plain')}"


def _pulse(source: Source) -> int:
    """Return a number that changes every half minute while a driver is at work: what waits, waits longer."""
    return int(time.time() // 30) if source.has_driver else 0


def _live(shown: Sequence[Source], key: str, page: str, cost: figures.Cost) -> tuple[Any, Any]:
    """Return what stands above and below the choice of the cost axis."""
    if key == "compare":
        return "", _cards(pages.compare_page(_named(shown), cost), "")
    if not key:
        return "", [_campaign_card(source) for source in shown] or _no_campaigns()
    source = shown[0]
    if page == "trust":
        return "", _cards(pages.trust_page(views.trust(source)), key)
    cards = pages.overview_page(views.overview(source), cost)
    return _cards(cards[:1], key), _cards(cards[1:], key)


def _named(shown: Sequence[Source]) -> list[tuple[str, views.Overview]]:
    found = [views.overview(source) for source in shown]
    summaries = [view.summary for view in found]
    return [(views.renamed(view.summary, summaries).name, view) for view in found]


def _route(path: str | None) -> tuple[str, str, str]:
    """Return campaign, page and crystal that an address names; what it names need not exist."""
    parts = [unquote(part) for part in (path or "/").strip("/").split("/", 2)]
    return (*parts, "", "")[:3]  # type: ignore[return-value]


def _href(key: str, page: str = "", id: str = "") -> str:
    return "/" + "/".join(quote(part, safe="") for part in (key, page, id) if part)


def _navigation(known: Mapping[str, Source], key: str, page: str) -> list[Any]:
    if key in known:
        return [_nav_link(name, _href(key, part), part == page) for part, name in PAGES.items()]
    links = [_nav_link("Campaigns", "/", not key)]
    return [*links, _nav_link("Compare", "/compare", key == "compare")] if len(known) > 1 else links


def _nav_link(name: str, href: str, current: bool) -> Any:
    if current:
        return html.A(name, href=href, **_aria(current="page"))
    return dcc.Link(name, href=href)


def _title(source: Source) -> html.Div:
    now = views.summary(source)
    return html.Div(
        [
            html.H1(now.name),
            html.Span(now.chemical_space, className="soft"),
            html.Span(_state_text(now), id="badge", className=f"badge {pages.STATE_TONES.get(now.state, 'plain')}"),
        ],
        className="title",
    )


def _state_text(now: views.Summary) -> str:
    return f"{now.state}, round {now.round + 1} of {now.rounds}"


def _shell(source: Source, page: str, id: str, controllable: bool) -> list[Any]:
    match page:
        case "hull":
            return _hull_shell(source)
        case "discoveries":
            return _discoveries_shell(source)
        case "candidates":
            return _candidates_shell()
        case "crystal":
            view = views.crystal_view(source, id)
            if view is None:
                return [html.P("This campaign has no candidate and no reference phase of this id.")]
            title = f"{pages.unicodeify(view.formula)}  ·  {view.id}"
            return [html.H1(title, className="title"), *_cards(pages.crystal_page(view), source.key)]
    if page == "":
        return [*([_control_row()] if controllable else []), *_live_area(_cost_choice())]
    return _live_area(_no_choice())


def _live_area(choice: Any) -> list[Any]:
    """Return where :func:`_live` is shown, around the choice of the cost axis."""
    waiting = html.P("Reading …", className="soft")
    return [dcc.Store(id="seen"), html.Div(id="head"), choice, html.Div(waiting, id="live")]


def _no_choice() -> Any:
    return html.Div(dcc.Input(id="cost", type="hidden", value="reference_calls"))


def _cost_choice() -> html.Div:
    costs: Any = [{"label": name.split(",")[0], "value": cost} for cost, name in figures.COSTS.items()]
    return html.Div(
        [
            html.Span("Hull growth over", className="label", id="cost-label"),
            dcc.RadioItems(
                costs,
                "reference_calls",
                id="cost",
                className="options",
                inline=True,
                persistence=True,
            ),
        ],
        className="field",
        role="group",
        **_aria(labelledby="cost-label"),
    )


def _index_shell(problems: Sequence[str]) -> list[Any]:
    left_out = [html.P(f"Not shown: {problem}", className="bad") for problem in problems]
    return [html.H1("Campaigns", className="title"), *_live_area(_no_choice()), *left_out]


def _compare_shell() -> list[Any]:
    return [html.H1("Campaigns side by side", className="title"), *_live_area(_cost_choice())]


def _no_campaigns() -> html.Div:
    return html.Div(
        [
            html.P("There is no campaign here yet. Begin one, and it will appear:"),
            html.Pre("discovery launch quickstart"),
        ],
        className="card",
    )


def _campaign_card(source: Source) -> Any:
    now = views.summary(source)
    grown = views.growth(source)
    tiles = [
        Tile("new phases on the hull", str(grown[-1].discovered) if grown else "0"),
        Tile("reference calculations", f"{now.budget.spent.get('reference_calls', 0):.0f}"),
        Tile("round", f"{now.round + 1} of {now.rounds}"),
        Tile("wall time", pages.duration(now.seconds)),
    ]
    tone = pages.STATE_TONES.get(now.state, "plain")
    control_arm = [html.Span(f"control arm: {', '.join(now.controls)}", className="badge")] if now.controls else []
    return dcc.Link(
        [
            html.Div(
                [
                    html.H2(now.name),
                    html.Span(
                        f"{now.chemical_space}, {now.parts['agent']} agent, {now.parts['generator']}", className="soft"
                    ),
                    html.Span(now.state, className=f"badge {tone}"),
                    *control_arm,
                ],
                className="title",
            ),
            _block(Tiles(tiles), source.key),
        ],
        href=_href(source.key),
        className="card campaign",
    )


def _aria(**names: str) -> Any:
    """Return names and states for screen readers."""
    return {f"aria-{name}": value for name, value in names.items()}


# Blocks -------------------------------------------------------------------------------------------------------------


def _cards(cards: Sequence[Card], key: str) -> list[Any]:
    return [
        html.Div(
            [
                html.Article([html.H2(card.title), *(_block(block, key) for block in card.blocks)], className="card")
                for card in group
            ],
            className=f"cards {width}",
        )
        for width, group in rows(cards)
    ]


def _block(block: Block, key: str) -> Any:
    match block:
        case Text():
            return html.P(block.text, className=block.tone)
        case Tiles():
            return html.Dl([_tile(tile) for tile in block.tiles], className="tiles")
        case Plot():
            graph = dcc.Graph(id=f"plot-{block.name}", figure=block.figure, config=GRAPH_CONFIG)
            return html.Div(graph, role="img", **_aria(label=block.description))
        case Table():
            return _table(block, key)
        case Meter():
            label = f"{block.label}: {block.text}"
            return html.Div(
                [
                    html.Div([html.Span(block.label), html.Span(block.text)], className="words"),
                    html.Div(
                        [
                            html.Span(className="used", style={"width": _percent(block.used)}),
                            html.Span(className="reserved", style={"width": _percent(block.reserved)}),
                        ],
                        className="track",
                        role="img",
                        **_aria(label=label),
                    ),
                ],
                className="meter",
            )
        case Downloads():
            links = [
                html.A(
                    FORMAT_NAMES[form],
                    href=f"/download/{quote(key, safe='')}/{form}?{urlencode({'id': block.id})}",
                    download="",
                )
                for form in CRYSTAL_FORMATS
            ]
            return html.Div(links, className="buttons")


def _tile(tile: Tile) -> html.Div:
    value = html.Div(tile.value, className=f"value {tile.tone}")
    return html.Div([html.Dt(tile.label), html.Dd([value, html.Div(tile.note, className="note")])], className="tile")


def _table(table: Table, key: str) -> html.Div:
    def styled(index: int, text: str) -> Any:
        return {"className": "number" if index in table.numbers else "long" if len(text) > LONG else ""}

    head = html.Thead(html.Tr([html.Th(name, scope="col", **styled(i, "")) for i, name in enumerate(table.header)]))
    body = [
        html.Tr(
            [
                html.Td(dcc.Link(cell.text, href=_href(key, "crystal", cell.id)), **styled(index, cell.text))
                if isinstance(cell, Link)
                else html.Td(cell, **styled(index, cell))
                for index, cell in enumerate(row)
            ]
        )
        for row in table.rows
    ]
    inside = [head, html.Tbody(body)] if any(table.header) else [html.Tbody(body)]
    return html.Div(html.Table(inside, className="plain"), className="scroll", tabIndex=0)


def _percent(fraction: float) -> str:
    return f"{100 * min(1.0, max(0.0, fraction)):.1f}%"


# Hull ---------------------------------------------------------------------------------------------------------------


def _hull_shell(source: Source) -> list[Any]:
    systems = views.drawable_systems(views.summary(source).elements)
    choices = ["-".join(system) for system in systems]
    roles: Any = [{"label": f"{role} oracle", "value": role} for role in reversed(ROLES)]
    return [
        html.Div(
            [
                html.Div(
                    [
                        html.Div(
                            [
                                html.Span("Energy scale", className="label"),
                                dcc.RadioItems(roles, "reference", id="role", className="options", inline=True),
                            ],
                            className="field",
                            role="group",
                            **_aria(label="Energy scale"),
                        ),
                        html.Div(
                            [
                                html.Label("Elements", htmlFor="system"),
                                html.Div(
                                    dcc.Dropdown(
                                        choices, choices[0] if choices else None, id="system", clearable=False
                                    ),
                                    className="choice",
                                ),
                            ],
                            className="field",
                        ),
                        html.Div(
                            [
                                html.Span("After round", className="label"),
                                html.Div(
                                    dcc.Slider(
                                        0, 1, 1, value=0, marks=None, id="stage", included=False, updatemode="drag"
                                    ),
                                    className="slider",
                                ),
                            ],
                            className="field slider",
                            role="group",
                            **_aria(label="Version of the hull"),
                        ),
                    ],
                    className="controls-row",
                ),
                html.Div(dcc.Graph(id="hull", config=GRAPH_CONFIG), role="img", id="hull-box"),
                html.P(id="hull-note", className="soft"),
                html.P("Click a phase to open it.", className="soft"),
                html.Div(id="hull-table"),
            ],
            className="card",
        ),
        dcc.Store(id="stages"),
    ]


def _register_hull(app: Dash, sources: Sources) -> None:
    @app.callback(
        Output("stage", "max"),
        Output("stage", "marks"),
        Output("stage", "value"),
        Output("stages", "data"),
        Input("tick", "n_intervals"),
        Input("role", "value"),
        State("stages", "data"),
        State("stage", "value"),
        State("url", "pathname"),
    )
    def follow(_tick: int | None, role: str, before: Any, value: int | None, path: str | None) -> tuple[Any, ...]:
        source = sources.all().get(_route(path)[0])
        if source is None or role not in ROLES:
            return (no_update,) * 4
        stages: list[Any] = [list(stage) for stage in views.hull_stages(source, role)]
        if before == [role, stages]:
            return (no_update,) * 4
        newest = max(len(stages) - 1, 0)
        same_role = before is not None and before[0] == role
        following = not same_role or value is None or value >= len(before[1]) - 1
        step = max(1, math.ceil(len(stages) / 10))
        marks = {
            index: label.removeprefix("round ")
            for index, (label, _) in enumerate(stages)
            if index in (0, newest) or (index % step == 0 and newest - index >= step)
        }
        return max(newest, 1), marks, newest if following else value, [role, stages]

    @app.callback(
        Output("hull", "figure"),
        Output("hull-note", "children"),
        Output("hull-table", "children"),
        Output("hull-box", "aria-label"),
        Input("stages", "data"),
        Input("stage", "value"),
        Input("system", "value"),
        State("url", "pathname"),
    )
    def draw(stages: Any, stage: int | None, system: str | None, path: str | None) -> tuple[Any, ...]:
        key = _route(path)[0]
        source = sources.all().get(key)
        if source is None or not stages or stages[0] not in ROLES:
            return figures.hull(None), "", "", ""
        known = {"-".join(elements): elements for elements in views.drawable_systems(views.summary(source).elements)}
        own = views.hull_stages(source, stages[0])
        diagram = None
        if system in known and own:
            index = min(max(int(stage or 0), 0), len(own) - 1)
            diagram = views.hull_diagram(source, stages[0], known[system], own[index][1])
        note = pages.hull_note(diagram)
        return figures.hull(diagram), note, _table(pages.hull_table(diagram), key), f"Phase diagram. {note}"

    @app.callback(
        Output("url", "pathname", allow_duplicate=True),
        Input("hull", "clickData"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def open_phase(click: Any, path: str | None) -> Any:
        try:
            id = str(click["points"][0]["customdata"][0])
        except (TypeError, KeyError, IndexError):
            return no_update
        return _href(_route(path)[0], "crystal", id)


# Tables -------------------------------------------------------------------------------------------------------------

_NUMBER = {"function": "params.value == null ? '–' : d3.format('.3f')(params.value)"}
_VOLUME = {"function": "d3.format('.2f')(params.value)"}
_SHORT = {"function": "params.value == null ? '–' : d3.format('.3~g')(params.value)"}


def _column(field: str, name: str, kind: str = "text", **more: Any) -> dict[str, Any]:
    column: dict[str, Any] = {"field": field, "headerName": name, "filter": "agTextColumnFilter"}
    if kind != "text":
        column |= {
            "filter": "agNumberColumnFilter",
            "type": "rightAligned",
            "valueFormatter": _NUMBER if kind == "energy" else _SHORT,
        }
    return column | more


def _grid(id: str, columns: list[dict[str, Any]], **more: Any) -> html.Div:
    options = {
        "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
        "suppressCellFocus": False,
        "ensureDomOrder": True,
    }
    return html.Div(
        dag.AgGrid(
            id=id,
            columnDefs=columns,
            defaultColDef={
                "sortable": True,
                "resizable": True,
                "minWidth": 90,
                "floatingFilter": True,
                "wrapHeaderText": True,
                "autoHeaderHeight": True,
            },
            dashGridOptions=options | more.pop("options", {}),
            style={"height": "70vh", "width": "100%"},
            **more,
        ),
        className="grid",
    )


def _discoveries_shell(source: Source) -> list[Any]:
    now = views.summary(source)
    columns = [
        _column("formula", "formula", pinned="left", width=110),
        _column("spacegroup", "space group", width=120),
        _column("stability", "verdict", width=120),
        _column("e_above_hull", f"e_above_hull (stable ≤ {now.threshold:g})", "energy", width=150),
        _column("e_above_hull_screening", "on the screening hull", "energy", width=140),
        _column("decomposition_energy", "decomposition energy", "energy", width=140),
        _column("formation_energy_per_atom", "formation energy", "energy", width=120),
        _column("volume_per_atom", "Å³/atom", "number", width=105, valueFormatter=_VOLUME),
        _column("novelty", "novelty", width=150),
        _column("round", "round", "number", width=95),
        _column("checkpoint", "checkpoint", width=140),
        _column("core_hours", "core-hours", "number", width=115),
        _column("id", "id", width=150),
    ]
    note = (
        f"Phases within {now.metastable_threshold:g} eV/atom of the newest reference hull, one for each structure, "
        f"without those that were known; if there are more than {views.MAX_DISCOVERIES}, those closest to it. Energies "
        "in eV/atom. Click a row, or press space on it, to open it."
    )
    grid = _grid("discoveries", columns, options={"localeText": {"noRowsToShow": "Nothing discovered yet."}})
    return [html.Div([html.P(note, className="soft"), grid], className="card")]


def _candidates_shell() -> list[Any]:
    columns = [
        _column("formula", "formula", pinned="left", width=120),
        _column("state", "state", width=130),
        _column("stability", "verdict when given", width=160),
        _column("e_above_hull", "e_above_hull when judged", "energy", width=140),
        _column("screening_decomposition_energy", "decomposition energy, screening", "energy", width=150),
        _column("formation_energy_per_atom", "formation energy", "energy", width=120),
        _column("round", "round", "number", width=95),
        _column("n_atoms", "atoms", "number", width=95),
        _column("checkpoint", "checkpoint", width=140),
        _column("id", "id", width=170),
    ]
    note = "All candidates, fetched page by page. Energies in eV/atom. Click a row, or press space on it, to open it."
    grid = _grid(
        "candidates",
        columns,
        rowModelType="infinite",
        options={"cacheBlockSize": 100, "maxBlocksInCache": 20, "rowBuffer": 0},
    )
    return [html.Div([html.P(note, className="soft"), grid], className="card")]


def _register_tables(app: Dash, sources: Sources) -> None:
    @app.callback(
        Output("discoveries", "rowData"),
        Input("tick", "n_intervals"),
        State("discoveries", "rowData"),
        State("url", "pathname"),
    )
    def discovered(_tick: int | None, before: Any, path: str | None) -> Any:
        source = sources.all().get(_route(path)[0])
        if source is None:
            return no_update
        found = [
            {name: getattr(row, name) for name in views.Discovery.__dataclass_fields__}
            | {"round": row.round + 1 if row.round is not None else None}
            for row in views.discoveries(source)
        ]
        return no_update if found == before else found

    @app.callback(
        Output("candidates", "getRowsResponse"), Input("candidates", "getRowsRequest"), State("url", "pathname")
    )
    def page(request: Any, path: str | None) -> Any:
        source = sources.all().get(_route(path)[0])
        if source is None or not isinstance(request, dict):
            return no_update
        start, stop = int(request.get("startRow", 0)), int(request.get("endRow", 100))
        found, total = source.queries.page(
            where=_conditions(request.get("filterModel") or {}),
            order=_order(request.get("sortModel") or []),
            offset=max(start, 0),
            limit=min(max(stop - start, 0), 500),
        )
        for row in found:
            row |= {"round": row["round"] + 1, "checkpoint": (row["checkpoint"] or "")[:12]}
            row["state"] = row["state"].replace("_", " ")
        return {"rowData": found, "rowCount": total}

    for table in ("discoveries", "candidates"):

        @app.callback(
            Output("url", "pathname", allow_duplicate=True),
            Input(table, "selectedRows"),
            State("url", "pathname"),
            prevent_initial_call=True,
        )
        def open_row(selected: Any, path: str | None) -> Any:
            if not selected:
                return no_update
            return _href(_route(path)[0], "crystal", str(selected[0]["id"]))


_COMPARISONS = {
    "contains": "contains",
    "equals": "equals",
    "lessThan": "at_most",
    "lessThanOrEqual": "at_most",
    "greaterThan": "at_least",
    "greaterThanOrEqual": "at_least",
}
"""What the grid calls a comparison → what the store calls it; others are left out."""


def _conditions(model: Mapping[str, Any]) -> list[Condition]:
    """Return the conditions of the grid's filters; what is no column, comparison or number is left out."""
    found: list[Condition] = []
    for column, asked in model.items():
        if column not in COLUMNS or not isinstance(asked, Mapping):
            continue
        parts = asked.get("conditions") if asked.get("operator") == "AND" else [asked]
        for part in parts or []:
            value, kind = part.get("filter"), part.get("type")
            if kind == "inRange":
                found += [(column, "at_least", value), (column, "at_most", part.get("filterTo"))]
            elif kind in _COMPARISONS:
                found.append((column, _COMPARISONS[kind], value))
    return [_stored(*condition) for condition in found if isinstance(condition[2], str | int | float)]


def _stored(column: str, comparison: str, value: Any) -> Condition:
    """Return a condition in the words of the store: its rounds count from 0, its states have underscores."""
    if column == "round" and not isinstance(value, str):
        value -= 1
    elif column == "state":
        value = str(value).replace(" ", "_")
    return column, comparison, value


def _order(model: Sequence[Mapping[str, Any]]) -> list[Order]:
    return [
        (part["colId"], "desc" if part.get("sort") == "desc" else "asc")
        for part in model
        if part.get("colId") in COLUMNS
    ]


# Control ------------------------------------------------------------------------------------------------------------


def _control_row() -> html.Div:
    return html.Div(
        [
            html.Label("Control token", htmlFor="token"),
            dcc.Input(id="token", type="password", persistence=True, persistence_type="session"),
            html.Div(
                [html.Button(name.capitalize(), id=f"control-{name}", n_clicks=0) for name in CONTROLS],
                className="buttons",
            ),
            html.Span(id="control-answer", role="status"),
        ],
        className="field",
    )


CONTROLS = {"pause": control.pause, "resume": control.resume, "stop": control.stop}


def _register_control(app: Dash, sources: Sources, token: str) -> None:
    @app.callback(
        Output("control-answer", "children"),
        Output("control-answer", "className"),
        [Input(f"control-{name}", "n_clicks") for name in CONTROLS],
        State("token", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def ask(*values: Any) -> tuple[str, str]:
        *clicks, given, path = values
        source = sources.all().get(_route(path)[0])
        name = str(ctx.triggered_id or "").removeprefix("control-")
        if source is None or name not in CONTROLS or not any(clicks):
            return no_update, no_update  # type: ignore[return-value]
        if not hmac.compare_digest(str(given or "").encode(), token.encode()):
            return "This is not the token that discovery dashboard printed.", "bad"
        if source.folder is None:
            return "Only the database of this campaign is known here, not its run folder.", "bad"
        try:
            pid = CONTROLS[name](source.folder.path)
        except DiscoveryError as error:
            return str(error), "bad"
        return f"Asked process {pid} to {name}.", "good"


# Downloads ----------------------------------------------------------------------------------------------------------


def _register_downloads(server: flask.Flask, sources: Sources) -> None:
    @server.get("/download/<key>/<form>")
    def download(key: str, form: str) -> flask.Response:
        source = sources.all().get(key)
        view = views.crystal_view(source, flask.request.args.get("id", "")) if source is not None else None
        if view is None or not view.shapes or form not in CRYSTAL_FORMATS:
            return flask.Response("There is no such crystal or format.", 404, mimetype="text/plain")
        role = next((role for role in reversed(ROLES) if role in view.evaluations and view.evaluations[role].ok), None)
        evaluation = view.evaluations[role] if role is not None else None
        name, text = crystal_file(form, view.id, view.shapes[-1].crystal, evaluation)
        answer = flask.Response(text, mimetype="application/json" if form == "json" else "text/plain")
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer
