"""How soon the dashboard shows a large campaign: seconds in Chromium to the first paint and to the complete page.

The campaign is made by ``benchmarks/large_campaign.py``. Each page is opened twice, in a new browser context each time:
first when the server has just started, then when it has read the campaign before. Needs Playwright and Chromium. Run
as::

    python benchmarks/dashboard.py runs/large
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from record import write_record

from discovery.dashboard import views
from discovery.dashboard.source import Source, Sources

PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def pages(source: Source) -> dict[str, str]:
    """Return page → selector of what it shows last; the crystal is one that the campaign found."""
    crystal = views.discoveries(source)[0].id
    return {
        "": "#plot-growth .main-svg",
        "hull": "#hull canvas, #hull .main-svg",
        "discoveries": ".ag-row",
        "candidates": ".ag-row",
        "trust": "#plot-parity .main-svg",
        f"crystal/{crystal}": "#plot-shape-0 canvas",
    }


def opened(browser: Browser, address: str, selector: str) -> dict[str, float]:
    """Return seconds until the first paint and until `selector` is there."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(300_000)
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.locator(selector).first.wait_for()
    complete = time.perf_counter() - start
    paint = page.evaluate(PAINT)
    context.close()
    return {"first_contentful_paint": paint, "complete": complete}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dashboard.json"))
    args = parser.parse_args()
    ((key, source),) = Sources([args.run]).all().items()
    funnel = source.store.funnel()
    shown = pages(source)
    database = args.run / "campaign.sqlite"
    results: dict[str, object] = {"funnel": dict(funnel), "database_bytes": database.stat().st_size}
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    with sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=args.chromium,
            args=["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"],
        )
        for page, selector in shown.items():
            server = subprocess.Popen(
                [sys.executable, "-m", "discovery", "dashboard", str(args.run), "--port", "0"],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert server.stdout is not None
            address = f"{server.stdout.readline().split()[0]}/{key}/{page}".rstrip("/")
            name = page.split("/")[0] or "overview"
            seconds[name] = {visit: opened(browser, address, selector) for visit in ("first", "again")}
            server.terminate()
            server.wait()
            print(name, seconds[name], file=sys.stderr, flush=True)
        browser.close()
    write_record(args.out, results | {"seconds": seconds}, seed=0, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
