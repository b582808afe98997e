"""The command ``discovery evaluate``: one subcommand per protocol."""

import typer

app = typer.Typer(help="Judge generated crystals by the field's protocols.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Judge generated crystals by the field's protocols."""
