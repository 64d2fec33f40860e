"""Screenshots of a run's report in headless Chromium: a phone and a desk, light and dark.

    python studies/lib/screenshots.py runs/demo docs/screenshots

Fails where the page logs an error, asks the network for anything, or scrolls sideways.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.browser import browser


def main(run: Path, out: Path) -> None:
    """Write out/report-WIDTH-SCHEME.png."""
    out.mkdir(parents=True, exist_ok=True)
    with browser() as b:
        for width in (390, 1280):
            for dark in (False, True):
                seen = b.see(run / "report.html", width, dark, shot=True)
                path = out / f"report-{width}-{'dark' if dark else 'light'}.png"
                path.write_bytes(seen.png)
                print(f"{path}: {seen.height} px high, {len(seen.png) / 1e3:.0f} kB")
                problems = [*seen.console, *seen.requests, *seen.overflowing]
                if problems or seen.scroll_width > seen.client_width:
                    raise SystemExit(f"{path}: {problems or 'the page scrolls sideways'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
