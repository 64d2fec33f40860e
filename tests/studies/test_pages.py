"""The committed pages are what the committed records say: no page is stale, no figure typed by hand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from cells import Grid
from results import Results
from tables import readme
from verdicts import PAGE, filled, section

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
