from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tests.fake_run import fake_run
from tests.hub import hub
from tests.tiny import tiny_folder

from prunetune.errors import MissingPath, RecipeError
from prunetune.publish.push import push
from prunetune.report.write import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = fake_run(tmp_path_factory.mktemp("run"))
    tiny_folder(at / "final")
    (at / "final/.hidden").write_text("not for others")
    write_report(at)
    return at


def test_a_dry_run_lists_and_sends_nothing(folder, monkeypatch) -> None:
    with hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        found = push(folder, "me/small")
        assert server.requests == []
    assert found.url is None
    assert found.files["model.safetensors"] == (folder / "final/model.safetensors").stat().st_size
    assert {"config.json", "tokenizer.json", "README.md", "figures/accuracy-size.svg"} <= set(found.files)
    assert ".hidden" not in found.files
    assert "dry run" in found.text()
    assert found.to_json()["files"] == found.files


# The library reads HF_ENDPOINT when it is imported, and the suite itself is offline: so the upload has its own process.
_UPLOAD = """
import sys
from pathlib import Path
from prunetune.errors import PrunetuneError
from prunetune.publish.push import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2], dry_run=False).url)
except PrunetuneError as e:
    print(type(e).__name__, e)
    raise SystemExit(2)
"""


def _upload(folder: Path, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    environment |= {
        "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-c", _UPLOAD, str(folder), "me/small"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_an_upload_arrives_byte_for_byte(folder, tmp_path) -> None:
    with hub() as server:
        done = _upload(folder, server.url, tmp_path)
        assert done.returncode == 0, (done.stdout, done.stderr, server.requests)
        assert server.tokens - {None} == {"Bearer hf_secret"}
        assert done.stdout.strip() == f"{server.url}/me/small"
    assert [(m["name"], m["organization"]) for m in server.made] == [("small", "me")]
    assert server.made[0].get("private") or server.made[0].get("visibility") == "private"
    assert server.message.startswith("prunetune: ")
    mine = {p.name: p.read_bytes() for p in (folder / "final").iterdir() if not p.name.startswith(".")}
    assert {n: b for n, b in server.files.items() if n in mine and n != "README.md"} == {
        n: b for n, b in mine.items() if n != "README.md"
    }
    card = server.files["README.md"].decode()
    assert server.cards == [card]
    assert 'from_pretrained("me/small")' in card
    assert ModelCard(card).data.library_name == "transformers"
    assert server.files["figures/accuracy-size.svg"] == (folder / "figures/accuracy-size.svg").read_bytes()


@pytest.mark.parametrize("status", [403])
def test_a_refusal_is_one_clear_message(folder, tmp_path, status) -> None:
    with hub(refuse=status) as server:
        done = _upload(folder, server.url, tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("NotWritable the hub did not take the upload")
    assert str(status) in done.stdout
    assert "hf auth login" in done.stdout


def test_no_hub(folder, tmp_path) -> None:
    done = _upload(folder, "http://127.0.0.1:9", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "NotWritable" in done.stdout
    assert "Connect" in done.stdout


@pytest.mark.parametrize("name", ["", "small", "a/b/c", "-x/y", "me/sm all"])
def test_a_bad_name(folder, name) -> None:
    with pytest.raises(RecipeError, match="no repository name"):
        push(folder, name)


def test_an_unfinished_run(tmp_path) -> None:
    with pytest.raises(MissingPath, match="no final model yet"):
        push(fake_run(tmp_path / "run", finished=False), "me/small")


def test_a_model_folder_is_pushed_as_it_is(tmp_path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "README.md").write_text("mine")
    for other in ("optimizer.pt", ".env", "notes.md"):
        (folder / other).write_text("not for others")
    found = push(folder, "me/small").files
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(found)
    assert not {"optimizer.pt", ".env", "notes.md"} & set(found)
    assert found["README.md"] == 4
