"""The site made of the pages, its links and its look; workflows, forms and images around the code."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
import time
from typing import Any

import pytest
import yaml
from tests.browser import Browser, browser, missing
from tests.pages import PAGES, PROJECT, ROOT, builder, parse

SITE = ROOT / "site"


def test_the_site_has_every_page():
    told = re.findall(r"([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2], re.M)
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")} | {"notebook.md"}
    assert set(told) == pages - {"results/smollm2/report.md"} and len(set(told)) == len(told)


def test_links_lead_to_pages_of_the_site():
    made, known = builder(), {"method.md", "results/README.md", "studies/01-a/README.md", "notebook.md"}
    for line, file, here, wanted in (
        ("[`a` b](../studies/01-a/README.md#x)", "docs/log.md", "log.md", "[`a` b](studies/01-a/README.md#x)"),
        (
            "[m](../method.md), `[m](method.md)`",
            "docs/results/README.md",
            "results/README.md",
            "[m](../method.md), `[m](method.md)`",
        ),
        (
            "[r](../../docs/results/README.md)",
            "studies/01-a/README.md",
            "studies/01-a/README.md",
            "[r](../../results/README.md)",
        ),
        ("[t](../Makefile) [n](notebook.ipynb)", "docs/guide.md", "guide.md", "t [n](notebook.md)"),
        ("[gone](no.md) [h](https://a.b/c)", "docs/guide.md", "guide.md", "[gone](no.md) [h](https://a.b/c)"),
    ):
        assert made._linked(line, file, here, known) == wanted
    assert [t for _, t in made._spaced(["a", "* b", "  c", "* d", "```", "x", "* y", "```"])] == [
        "a", "", "* b", "  c", "* d", "```", "x", "* y", "```",
    ]  # fmt: skip


def test_relative_links_of_the_pages_exist():
    for page in [*PAGES, ROOT / "SECURITY.md"]:
        for to in re.findall(
            r"\]\(([^)#\s]+)", re.sub(r"`[^`\n]*`|^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        ):
            assert re.match(r"[a-z]+:", to) or (page.parent / to).exists(), f"{page.name}: {to}"


def test_what_loads_from_another_host_is_seen():
    made = builder()
    own = '<a href="https://a.b">a</a><script src="js/a.js"></script><link href=a.css><link rel="next" href="https://a.b">'
    assert made.foreign(own) == []
    for bad in (
        '<img src="//a.b/c.png">',
        "<script src=https://a.b/c></script>",
        "<style>@import 'https://a.b'</style>",
    ):
        assert len(made.foreign(bad)) == 1, bad


def test_workflows_and_forms_are_valid():
    """They parse; jobs have steps, actions have versions, make's targets are there, publishing needs no secret."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert [f.stem for f in files] == ["docs", "release", "test"]
    for file in files:
        flow = yaml.safe_load(file.read_text())
        assert flow["permissions"] == {"contents": "read"} and flow[True], file  # `on` is true to YAML 1.1
        for step in (step for job in flow["jobs"].values() for step in job["steps"]):
            assert ("uses" in step) != ("run" in step)
            assert re.search(r"@(release/)?v\d+$", step.get("uses", "a@v1")), step
            run = step.get("run", "")
            assert set(re.findall(r"\bmake (\w+)", run)) <= set(targets)
            for part in re.split(r"&&|\n", run):
                if part.strip().startswith("prunetune"):
                    parse(part)
        assert "secrets." not in file.read_text()
    newer = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["newer"]["strategy"]["matrix"]
    told = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert told == ["3.11", *newer["python"]]
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        value = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= set(value) and all("type" in part for part in value["body"])
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])


def test_the_images_copy_what_there_is():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    named = [w for line in lines if line.startswith("COPY") and "--from" not in line for w in line.split()[1:-1]]
    sent = (ROOT / ".dockerignore").read_text().split()
    assert named and all((ROOT / name).exists() and f"!{name}" in sent for name in named)
    pinned = {line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(re.findall(r"\btorch==[\d.]+", "\n".join(lines))) <= pinned


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="no site is built (make docs)")
@pytest.mark.skipif(bool(missing()), reason=str(missing()))
@pytest.mark.slow
def test_the_site_in_a_browser():
    """Narrow and wide, light and dark: nothing complains, asks another host or overflows; search finds."""
    serve = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server, browser() as b:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        for width, dark in ((390, False), (390, True), (1280, False), (1280, True)):
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            b.cdp("Emulation.setEmulatedMedia", features=[scheme])
            b.cdp(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
            )
            b.call("POST", f"{b.session}/url", {"url": f"{base}index.html"})
            b.script("localStorage.clear()")  # the theme remembers the last look
            for page in ("index", "concepts", "troubleshooting", "api", "recipe", "results"):
                b.call("POST", f"{b.session}/url", {"url": f"{base}{page}.html"})
                assert b.script("return document.documentElement.scrollWidth") <= width, page
                look = b.script("return document.body.getAttribute('data-md-color-scheme')")
                assert look == ("slate" if dark else "default")
        for word in ("resume", "CSV", "memory"):
            b.call("POST", f"{b.session}/url", {"url": f"{base}index.html"})
            assert found_by_search(b, word), word
        events = [json.loads(e["message"])["message"] for e in b.log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert asked and all(u.startswith((base, "data:", "blob:", "chrome")) for u in asked), asked
        assert not [e["message"] for e in b.log("browser")]
        server.shutdown()


def found_by_search(b: Browser, word: str) -> int:
    """How many results the site's search shows."""
    for _ in range(40):
        b.script(
            "const i = document.querySelector('input.md-search__input'); i.focus();"
            f"i.value = {word!r}; i.dispatchEvent(new Event('keyup', {{bubbles: true}}));"
        )
        time.sleep(0.25)
        found = int(b.script("return document.querySelectorAll('.md-search-result__item').length"))
        if found:
            return found
    return 0
