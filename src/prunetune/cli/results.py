"""What is done with runs: `watch` and `runs` look on, `report`, `compare`, `check`, `export`, `push` come after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunetune.cli.options import Json, emit, quiet_libraries
from prunetune.common.table import aligned
from prunetune.errors import PrunetuneError, UnknownName


def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, of a run that goes on elsewhere.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once and stop, for scripts.")] = False,
    as_json: Json = False,
) -> None:
    """Look on while a run goes on, from another terminal or machine; ends when the run ends."""
    from rich.console import Console

    from prunetune.report.live import text_of, view, watch_run
    from prunetune.runs.state import state_of

    if once or as_json:
        state = state_of(run)
        return emit(as_json, state.to_json(), text_of(view(state)))
    watch_run(run, Console())
    return None


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds run folders.")] = Path("runs"), as_json: Json = False
) -> None:
    """The runs in a folder: state, size, accuracy, where each is or stopped."""
    from prunetune.report.live import list_runs
    from prunetune.runs.state import find_runs, state_of

    states = [state_of(path) for path in find_runs(folder)]
    emit(as_json, [s.to_json() for s in states], list_runs(states) if states else f"no runs in {folder}")


def report(run: Annotated[Path, typer.Argument(help="Run folder.")], as_json: Json = False) -> None:
    """Write report.md, report.html and figures/ of a run anew."""
    from prunetune.report.write import write_report

    write_report(run)
    emit(as_json, {"report": str(run / "report.html")}, f"{run / 'report.md'}\n{run / 'report.html'}")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; RUN/control is one too.")],
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or json.")] = "text",
    figure: Annotated[Path | None, typer.Option(help="Also write the accuracy-against-size plot (SVG) here.")] = None,
    as_json: Json = False,
) -> None:
    """The paper's Table 1 for any runs, with paired tests on the same questions."""
    from prunetune.report.compare import compare as compare_runs

    found = compare_runs(runs)
    if figure is not None:
        found.write_figure(figure)
    print(found.render("json" if as_json else form))


def check(run: Annotated[Path, typer.Argument(help="Run folder, or model folder.")], as_json: Json = False) -> None:
    """Does a final model work where people will use it? One line a consumer."""
    from prunetune.publish.check import check as check_run

    lines = check_run(run)
    words = {True: "yes", False: "no", None: "not installed"}
    emit(
        as_json,
        [{"name": x.name, "ok": x.ok, "reason": x.reason} for x in lines],
        aligned([(x.name, words[x.ok], x.reason) for x in lines], left=3),
    )
    if any(x.ok is False for x in lines):
        raise typer.Exit(1)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or model folder.")],
    to: Annotated[str, typer.Option(help="gguf, or fewer bits for vLLM: fp8, int8, int4.")] = "gguf",
    quantize: Annotated[
        str, typer.Option(help="Of gguf: f16, bf16, q8_0, q4_0, …; q4_k_m and its like by llama-quantize.")
    ] = "f16",
    out: Annotated[Path | None, typer.Option(help="Without it NAME-QUANTIZE.gguf or NAME-FORMAT.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text file to measure the perplexity on.")] = None,
    converter: Annotated[
        str | None, typer.Option(help="llama.cpp's convert_hf_to_gguf.py, where it is not found.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Only print the commands that serve it.")] = False,
    as_json: Json = False,
) -> None:
    """A final model as a GGUF file, or with fewer bits for vLLM; read again, and held against the model."""
    from prunetune.publish.compressed import SCHEMES, compress
    from prunetune.publish.export import export as export_run
    from prunetune.publish.serve import commands

    if to not in ("gguf", *SCHEMES):
        raise UnknownName("format", to, ("gguf", *SCHEMES))
    if to != "gguf" and (quantize != "f16" or converter is not None):
        raise PrunetuneError(f"--quantize and --converter are of --to gguf; {to} says it all", fix="leave them out")
    out = out or Path(f"{run.resolve().name}-{quantize}.gguf" if to == "gguf" else f"{run.resolve().name}-{to}")
    if serve:
        found = commands(run, out, to)
        return emit(as_json, dict(found), aligned(found, left=2))
    quiet_libraries()
    if to == "gguf":
        done = export_run(run, out, quantize=quantize, text=text, converter=converter)
    else:
        done = compress(run, out, to=to, text=text)
    emit(as_json, done.to_json(), done.text())
    if done.faults:
        raise typer.Exit(1)
    return None


def push(
    run: Annotated[Path, typer.Argument(help="Run folder, or model folder.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, OWNER/NAME.")],
    upload: Annotated[bool, typer.Option("--upload", help="Upload; without it, only say what would be.")] = False,
    private: Annotated[bool, typer.Option("--private/--public", help="Visibility of a new repository.")] = True,
    as_json: Json = False,
) -> None:
    """Publish a final model on the hub. A dry run unless --upload is given."""
    from prunetune.publish.push import push as push_run

    done = push_run(run, repo, dry_run=not upload, private=private)
    emit(as_json, done.to_json(), done.text())
