"""Every study's claims and verdicts as one table in docs/results.md, from the records alone.

python studies/lib/verdicts.py            # fills what stands between the two marks in docs/results.md
"""

from __future__ import annotations

from pathlib import Path

from cells import Grid
from results import Results
from tables import decide, seeds_text, table

HERE = Path(__file__).resolve().parents[1]
PAGE = HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- verdicts: made by studies/lib/verdicts.py -->", "<!-- end of verdicts -->"


def section(grid: Grid) -> str:
    """A study's title, how much of it is measured, and its claims."""
    results = Results.read(grid)
    done, cells = len(results.records), len(grid.cells())
    link = f"../studies/{grid.folder.name}"
    page = "README.md" if (grid.folder / "README.md").is_file() else "grid.yaml"
    told = f"{done} of {cells} cells measured, seeds {seeds_text(grid)}"
    if not done:
        return f"### {grid.title}\n\n[{grid.folder.name}]({link}/grid.yaml): not run yet ({cells} cells)."
    rows = [[d.text, d.measured, f"**{d.verdict}**"] for d in (decide(results, c) for c in grid.claims)]
    head = f"### {grid.title}\n\n[{grid.folder.name}]({link}/{page}): {told}."
    return f"{head}\n\n{table(['claim', 'measured (points, 95 % interval)', 'verdict'], rows)}" if rows else head


def filled(page: str, studies: Path) -> str:
    """The page with the part between its marks made anew."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    grids = [Grid.read(path.parent) for path in sorted(studies.glob("[0-9]*/grid.yaml"))]
    return "\n\n".join([before + BEGIN, *(section(g) for g in grids), END + after])


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), HERE), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
