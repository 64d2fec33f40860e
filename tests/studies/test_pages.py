"""The committed pages are what the committed records say: none is stale, no figure typed by hand; the verdicts between their marks."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from cells import Grid
from results import Results
from tables import decide, readme
from verdicts import BEGIN, END, PAGE, filled, section

STUDIES = Path(__file__).parents[2] / "studies"
MEASURED = sorted(p.parent for p in STUDIES.glob("[0-9]*/records.jsonl"))
MEASURED = [p for p in MEASURED if (p / "grid.yaml").is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("study", MEASURED, ids=lambda p: p.name)
def test_a_studys_page_is_made_from_its_records(study):
    grid = Grid.read(study)
    assert (study / "README.md").read_text() == readme(Results.read(grid)), f"run {study}/tables"
    assert section(grid) in PAGE.read_text(), "run studies/lib/verdicts.py"


def test_the_results_page_has_every_study_once():
    page = PAGE.read_text()
    grids = sorted(STUDIES.glob("[0-9]*/grid.yaml"))
    assert len(MEASURED) <= len(grids)
    for path in grids:
        assert len(re.findall(rf"^\[{path.parent.name}\]", page, re.M)) == 1


def test_a_stale_page_is_seen(tmp_path):
    page = f"a {PAGE.read_text().partition('##')[0]}<!-- verdicts: made by studies/lib/verdicts.py -->STALE<!-- end of verdicts -->z"
    made = filled(page, tmp_path)
    assert made != page and made.endswith("<!-- end of verdicts -->z") and "STALE" not in made


def test_the_page_of_cuts_on_pre_trained_models_is_made_from_its_records():
    folder = STUDIES / "14-axes"
    spec = importlib.util.spec_from_file_location("axes_tables", folder / "cuts.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (folder / "README.md").read_text() == made.page(), "run studies/14-axes/cuts.py"
    assert made.ratio([2.0, 4.0], [1, 2]) == (2.0, 0.0)


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
