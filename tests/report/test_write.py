from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.browser import browser, missing
from tests.fake_run import add_perplexity, fake_run

from prunetune.errors import MissingPath, NotWritable
from prunetune.report.write import write_report
from prunetune.runs.reading import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = fake_run(tmp_path_factory.mktemp("run"))
    write_report(at)
    return at


def test_nothing_is_written_behind_a_link(tmp_path) -> None:
    at, elsewhere = fake_run(tmp_path / "run"), tmp_path / "elsewhere"
    for name in ("figures", "final"):
        (elsewhere / name).mkdir(parents=True)
        shutil.rmtree(at / name, ignore_errors=True)
        (at / name).symlink_to(elsewhere / name, target_is_directory=True)
    with pytest.raises(NotWritable, match="figures"):
        write_report(at)
    (at / "figures").unlink()
    write_report(at)
    assert (at / "figures").is_dir() and not list(elsewhere.rglob("*.*")), "no card behind the link"


class _Page(HTMLParser):
    """Collects attributes that could reach the network, and checks that tags close."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "path", "use"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)


def _page(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    page.close()
    return page


def test_html_is_whole_and_needs_nothing_else(folder) -> None:
    text = (folder / "report.html").read_text()
    page = _page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(v.startswith(("#", "data:")) for v in page.links)
    assert {v[1:] for v in page.links if v.startswith("#")} <= set(page.ids)
    assert "@import" not in text
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_figures_come_from_the_records(folder) -> None:
    run = read_run(folder)
    final = run.final
    assert run.original is not None
    assert final is not None
    for name in ("report.md", "report.html", "final/README.md"):
        text = (folder / name).read_text()
        ratio = final.cost.params / run.original.cost.params
        assert f"{ratio:.3f}" in text
        assert f"{100 * ratio:.1f} % of the parameters" in text.replace("\u00a0", " ")
        for e in (*run.original.evals, *final.evals, *run.control.final.evals):
            assert e.text() in text
        assert "pruned once" in text
        assert "same recovery tokens" in text
        assert f"{sum(t.truncated for s in run.stages for t in s.tune)} of 4,000 (0.30 %) recovery examples" in text


def test_a_changed_record_changes_the_report(folder, tmp_path) -> None:
    at = tmp_path / "run"
    shutil.copytree(folder, at)
    path = at / "04-layers-2/stage.json"
    stage = json.loads(path.read_text())
    stage["evals"][0] |= {"value": 0.1234, "stderr": 0.0432}
    stage["cost"]["params"] = 77_700_000
    path.write_text(json.dumps(stage))
    write_report(at)
    for name in ("report.md", "report.html", "final/README.md"):
        text = (at / name).read_text()
        assert "12.3 % ± 4.3" in text
        assert "77.7 M" in text


def test_a_control_with_other_tokens_is_not_called_the_same(folder, tmp_path) -> None:
    at = tmp_path / "run"
    shutil.copytree(folder, at)
    path = at / "control/01-together-48/stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": 40960}))
    write_report(at)
    for name in ("report.md", "report.html"):
        text = (at / name).read_text()
        assert "same recovery tokens" not in text
        assert "0.50 × the recovery tokens" in text


def test_examples_are_the_same_questions_by_both(folder) -> None:
    text = (folder / "report.md").read_text()
    for task in ("demo", "gsm_symbolic"):
        first, second = (
            {r["id"]: r for r in map(json.loads, (folder / d / f"eval/{task}.jsonl").read_text().splitlines())}
            for d in ("original", "04-layers-2")
        )
        for title, verdicts in {"Both right": (True, True), "Lost": (True, False), "Gained": (False, True)}.items():
            ids = [i for i in first if (first[i]["correct"], second[i]["correct"]) == verdicts]
            if ids:
                assert f"#### {title}: {ids[0]}\n" in text
                assert second[ids[0]]["output"].strip() in text
    assert "McNemar's exact p" in text


def test_model_output_cannot_break_the_page(folder, tmp_path) -> None:
    at = tmp_path / "run"
    shutil.copytree(folder, at)
    for stage in ("original", "04-layers-2"):
        path = at / stage / "eval/demo.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[0] |= {
            "output": "</pre><script>alert(1)</script>\n````\n# heading\n| a |",
            "correct": True,
            "id": "demo-0",
        }
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_report(at)
    html, markdown = (at / "report.html").read_text(), (at / "report.md").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert _page(html).open == []
    assert re.search(r"^`{5}text\n</pre><script>", markdown, flags=re.M)


def test_half_a_run_says_what_is_missing(tmp_path) -> None:
    at = fake_run(tmp_path / "half", finished=False)
    write_report(at)
    for name in ("report.md", "report.html"):
        text = (at / name).read_text()
        assert "The run is not finished" in text
        assert "No leak check was recorded" in text
        assert "Not recorded." in text
    assert not (at / "final").exists()


def test_a_run_without_anything_but_the_original(tmp_path) -> None:
    at = tmp_path / "run/original"
    at.mkdir(parents=True)
    (at / "stage.json").write_text('{"index": 0, "name": "original"}')
    write_report(tmp_path / "run")
    text = (tmp_path / "run/report.md").read_text()
    assert "No stage is finished yet" in text
    assert "No task was evaluated" in text
    assert _page((tmp_path / "run/report.html").read_text()).open == []


def test_a_leak_is_a_warning(folder, tmp_path) -> None:
    at = tmp_path / "run"
    shutil.copytree(folder, at)
    summary = json.loads((at / "summary.json").read_text())
    summary["leaks"]["demo"]["exact"] = 4
    (at / "summary.json").write_text(json.dumps(summary))
    write_report(at)
    assert "Warning: the recovery data hold questions of demo" in (at / "report.md").read_text()
    assert 'class="note warn">Warning' in (at / "report.html").read_text()


def test_markdown_tables_are_rectangular_and_figures_exist(folder) -> None:
    text = re.sub(r"^`{3,}.*?^`{3,}$", "", (folder / "report.md").read_text(), flags=re.M | re.S)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / figure).is_file()


def test_no_run(tmp_path) -> None:
    with pytest.raises(MissingPath):
        write_report(tmp_path / "none")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_in_a_browser(folder, tmp_path) -> None:
    half = fake_run(tmp_path / "half", finished=False)
    write_report(half)
    with browser() as b:
        for page in (folder / "report.html", half / "report.html"):
            for width in (390, 1280):
                for dark in (False, True):
                    seen = b.see(page, width, dark)
                    assert (seen.console, seen.requests) == ([], [])
                    assert seen.scroll_width <= seen.client_width == width
                    assert seen.overflowing == []
        b.see(folder / "report.html", 390, dark=True)
        colours = [b.script("return getComputedStyle(document.body).backgroundColor")]
        b.see(folder / "report.html", 390, dark=False)
        colours.append(b.script("return getComputedStyle(document.body).backgroundColor"))
        assert colours[0] != colours[1]


def test_a_perplexity_is_nowhere_a_percentage(tmp_path) -> None:
    run = add_perplexity(fake_run(tmp_path / "run"))
    write_report(run)
    values = [1234.0 * 1.1**i for i in range(5)]
    for file in ("report.md", "report.html", "final/README.md"):
        text = _page((run / file).read_text()).text if file.endswith("html") else [(run / file).read_text()]
        text = "".join(text).replace("\xa0", " ")
        assert "1,234.0" in text, file
        assert not [
            v for v in values for digits in (0, 1) if f"{100 * v:,.{digits}f}" in text or f"{v:.{digits}f} %" in text
        ]
    markdown = (run / "report.md").read_text()
    assert "| perplexity, n = 5,000 tokens | 1,234.0 ± 12.0 | **1,806.7 ± 12.0** | 1.464 | 1,357.4 ± 12.0 |" in markdown
    assert "; perplexity: 1,234.0 ± 12.0 before, 1,806.7 ± 12.0 after." in markdown
    assert "accuracy, perplexity" not in markdown and "speed-up a question, perplexity" not in markdown
