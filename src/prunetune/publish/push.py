"""A run's result to the Hugging Face hub: model, card, figure. Dry by default.

    push(Path("runs/demo"), "me/small")                  # says what would be uploaded
    push(Path("runs/demo"), "me/small", dry_run=False)   # uploads it, in one commit

The token and the address (`HF_ENDPOINT`) are huggingface_hub's own: `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunetune.common import units as human
from prunetune.common.table import aligned
from prunetune.errors import MissingExtra, NotWritable, RecipeError
from prunetune.publish.inputs import final_of
from prunetune.report.card import model_card
from prunetune.runs.reading import RunRecord

FIGURES = ("accuracy-size",)


@dataclass(frozen=True)
class Pushed:
    """What was, or would be, uploaded: path in the repository -> bytes. `url` is None for a dry run."""

    repo_id: str
    files: dict[str, int]
    url: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """One line a file, with its size."""
        head = f"uploaded to {self.url}" if self.url else f"dry run: this would be uploaded to {self.repo_id}"
        sizes = {**self.files, "in all": sum(self.files.values())}
        return f"{head}\n{aligned([(f'  {name}', human.size(size)) for name, size in sizes.items()])}"


def push(run: Path, repo_id: str, *, dry_run: bool = True, private: bool = True) -> Pushed:
    """Upload RUN/final, or a model folder, as one commit to a model repository, which is made if it is not there.

    Args:
        run: A finished run folder, or a model folder (whose own README.md is its card).
        repo_id: `OWNER/NAME`.
        dry_run: Only check and list; nothing is sent.
        private: Whether a repository that has to be made is private.

    Raises:
        MissingPath, BadCheckpoint: There is no usable model in the run folder.
        RecipeError: Not a repository name.
        NotWritable: The hub refused (no login, no permission) or could not be reached.
    """
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as e:
        raise MissingExtra("huggingface_hub", "eval", "pushing to the hub") from e
    try:
        validate_repo_id(repo_id)
        why = None if repo_id.count("/") == 1 else "say whose it is: `hf auth whoami` tells your own name"
    except HFValidationError as e:
        why = str(e)
    if why is not None:
        raise RecipeError("this is no repository name", value=repo_id, valid="OWNER/NAME", fix=why)
    final, record = final_of(run)
    contents = _own_files(final) if record is None else _contents(record, final, repo_id)
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in contents.items()}
    url = None if dry_run else _upload(repo_id, contents, private, _message(record, final))
    return Pushed(repo_id, sizes, url)


_OF_A_MODEL = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*")


def _own_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a model folder that is no run's: only what models consist of, since anything may lie beside it."""
    found = {p.name: p for pattern in _OF_A_MODEL for p in folder.glob(pattern) if p.is_file()}
    return {name: found[name] for name in sorted(found) if not name.startswith(".")}


def _contents(run: RunRecord, final: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Path in the repository -> a file, or bytes made here. Hidden files stay behind."""
    out: dict[str, Path | bytes] = {
        p.name: p for p in sorted(final.iterdir()) if p.is_file() and not p.name.startswith(".")
    }
    card = model_card(run, where=repo_id, folder=final.name)
    for name in FIGURES:
        figure = run.path / "figures" / f"{name}.svg"
        if figure.is_file():
            out[f"figures/{name}.svg"] = figure
            card += f"\n![Accuracy against size](figures/{name}.svg)\n"
    out["README.md"] = card.encode()
    return out


def _message(run: RunRecord | None, final: Path) -> str:
    if run is None:
        return f"prunetune: {final.resolve().name}"
    stages = len(run.accepted)
    params = run.final.params if run.final else None
    return f"prunetune: {human.count(params)} parameters after {stages} {'round' if stages == 1 else 'rounds'}"


def _upload(repo_id: str, contents: dict[str, Path | bytes], private: bool, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are OSError (no login, offline) and the root of the HTTP library that huggingface_hub uses (no network).
    refused: tuple[type[Exception], ...] = (ValueError, *HfHubHTTPError.__bases__)
    api = HfApi(library_name="prunetune")
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=n, path_or_fileobj=c) for n, c in contents.items()]
        api.create_commit(made.repo_id, operations=operations, commit_message=message)
    except refused as e:
        said = (str(e).strip() or "no message").splitlines()[0]
        raise NotWritable(
            f"the hub did not take the upload ({type(e).__name__}: {said})",
            value=repo_id,
            fix="log in with `hf auth login`, check the name and the network, then run again",
        ) from e
    return str(made)
