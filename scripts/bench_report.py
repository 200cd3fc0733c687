"""Bytes of report pages, seconds to write them, and milliseconds until a browser has drawn them.

Pages are of Step-3.5 without weights, at its real width, with some numbers of layers. Chromium, if
there is one on the PATH, opens each twice: at the width of a desktop and at that of a phone, of
which pictures are kept too.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from compiler.cli.entry import run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"desktop": 1400, "phone": 390}
CLOCK = "<script>document.documentElement.dataset.drawnMs = performance.now()</script></body>"


def main() -> int:
    """Write and open the pages, and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench_report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--layers", type=int, nargs="+", default=[45, 100])
    parser.add_argument("--machine", default="h200x8")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/report"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    for layers in options.layers:
        page = options.output / f"layers_{layers}.html"
        start = time.perf_counter()
        model = ("step3p5", "--set", f"layers={layers}", "--machine", options.machine)
        if code := run(["report", *model, "-o", str(page)]):
            return code
        seconds = time.perf_counter() - start
        print(f"{layers} layers: {page.stat().st_size:,} bytes, written in {seconds:.1f} s")
        for name, width in WIDTHS.items() if browser else ():
            print(f"  {name}, {width} wide: drawn after {drawn_ms(browser, page, width):.0f} ms")
    return 0


def drawn_ms(browser: str | None, page: Path, width: int) -> float:
    """Return when the page's script had ended, from the start of the navigation."""
    timed = page.with_suffix(".timed.html")
    timed.write_text(page.read_text().replace("</body>", CLOCK))
    picture = page.with_suffix(f".{width}.png")
    window = ("--headless=new", "--no-sandbox", f"--window-size={width},2400")
    for action in ("--dump-dom", f"--screenshot={picture}"):
        done = subprocess.run(
            [str(browser), *window, action, timed.resolve().as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        if action == "--dump-dom":
            drawn = re.search(r'data-drawn-ms="([\d.]+)"', done.stdout)
    timed.unlink()
    assert drawn is not None, "the page's script did not end"
    return float(drawn[1])


if __name__ == "__main__":
    sys.exit(main())
