"""The page of all verdicts: filled between its marks, from the grids and records alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from cells import Grid
from results import Results
from tables import decide
from verdicts import BEGIN, END, PAGE, filled

STUDIES = Path(__file__).parents[2] / "studies"


def test_the_marked_part_is_made_anew_and_the_rest_stays(tmp_path):
    for name in ("03-table-1", "05-order"):
        (tmp_path / name).mkdir()
        shutil.copy(STUDIES / name / "grid.yaml", tmp_path / name)
    page = filled(f"before\n{BEGIN}STALE{END}\nafter", tmp_path)
    assert page.startswith(f"before\n{BEGIN}") and page.endswith(f"{END}\nafter") and "STALE" not in page
    titles = [Grid.read(tmp_path / name).title for name in ("03-table-1", "05-order")]
    assert 0 < page.index(titles[0]) < page.index(titles[1])
    assert page.count("not run yet") == 2
    assert filled(page, tmp_path).split() == page.split()  # again: the same


def test_the_verdicts_are_those_of_the_studys_own_tables(tmp_path):
    shutil.copytree(STUDIES / "12-recovery", tmp_path / "12-recovery")
    page = filled(BEGIN + END, tmp_path)
    results = Results.read(Grid.read(tmp_path / "12-recovery"))
    for claim in results.grid.claims:
        found = decide(results, claim)
        assert f"| {found.text} | {found.measured} | **{found.verdict}** |" in page
    (tmp_path / "12-recovery" / "records.jsonl").unlink()
    assert "not run yet" in filled(BEGIN + END, tmp_path)


def test_the_page_in_the_docs_has_the_marks():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)
