"""Nothing goes that we did not make; what was made is whole, and is told when a byte of it has changed."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

import prunetune
from prunetune.common import files, notes
from prunetune.common.files import (
    GONE,
    MARK,
    TMP,
    check_space,
    disk_errors,
    fresh,
    is_made,
    mark,
    once,
    remove,
    replacing,
    temporary,
    write_json,
)  # fmt: skip
from prunetune.common.notes import damage, note_path, read_note, verify
from prunetune.common.reading import read_json
from prunetune.errors import BadCheckpoint, NotWritable

SRC = Path(prunetune.__file__).parent
DELETES = {"rmtree", "unlink", "rename", "renames", "rmdir", "removedirs", "move"}
ALONE = "common/files.py"
GROUPS = {"tasks/sandbox/confined/group.py": {"os.rmdir"}}
"""Control groups of the kernel, which the sandbox has made: no files are in them, and rmdir takes none."""


def deletions(source: str) -> list[tuple[int, str]]:
    """Calls that can delete or overwrite a path: by name, or as `os.remove`, `os.replace`, `Path.replace(one)`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        plain_replace = name == "replace" and (owner == "os" or (len(node.args) == 1 and not node.keywords))
        if name in DELETES or plain_replace or (name == "remove" and owner == "os"):
            found.append((node.lineno, f"{owner}.{name}"))
    return found


def test_one_file_deletes() -> None:
    assert deletions("import os\nos.remove(p)\nos.replace(a, b)\nq.replace(b)\nshutil.move(a, b)\np.unlink()\n") != []
    assert deletions("'a'.replace('b', 'c')\ndataclasses.replace(x, y=1)\nlist.remove(3)\n") == []
    found = {
        str(p.relative_to(SRC)): calls for p in sorted(SRC.rglob("*.py")) if (calls := deletions(p.read_text("utf-8")))
    }
    found = {p: calls for p, calls in found.items() if {name for _, name in calls} - GROUPS.get(p, set())}
    assert set(found) == {ALONE}, "only common/files.py deletes, after check_ours: call its `remove` or `replacing`"
    assert len(found[ALONE]) == 6


# ------------------------------------------------------------------------------------------------------ what goes


def stranger(at: Path, kind: str) -> Path:
    """Something that is not ours, with a file in it that must stay."""
    (at / "theirs").mkdir()
    (at / "theirs" / "precious").write_text("mine")
    if kind == "folder":
        return at / "theirs"
    if kind == "file":
        return at / "theirs" / "precious"
    (at / "link").symlink_to(at / "theirs")
    return at / "link"


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_ours_stays(tmp_path: Path, kind: str) -> None:
    path = stranger(tmp_path, kind)
    for act in (remove, lambda p: once(p, 1, lambda tmp: tmp.write_text("x"))):
        with pytest.raises(NotWritable, match="did not make"):
            act(path)
    assert (tmp_path / "theirs" / "precious").read_text() == "mine"


def test_the_refusal_comes_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(NotWritable):
        once(stranger(tmp_path, "folder"), 1, lambda tmp: pytest.fail("worked first"))


@pytest.mark.parametrize("place", ["/", "cwd", "above", "home"])
def test_places_that_are_lived_in_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    mark(home / "work", "run")
    mark(home, "run")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    for name in ("rmtree", "rename", "unlink"):  # were the rule broken, nothing would go all the same
        owner = files.shutil if name == "rmtree" else Path
        monkeypatch.setattr(owner, name, lambda *a, **k: pytest.fail("deleted"))
    with pytest.raises(NotWritable, match="did not make"):
        remove({"/": Path("/"), "cwd": home / "work", "above": Path(), "home": home}[place])


def test_ours_goes(tmp_path: Path) -> None:
    made = once(tmp_path / "made", 1, lambda tmp: (tmp.mkdir(), (tmp / "a").write_text("a")))
    remove(made)
    (tmp_path / "run" / "x").mkdir(parents=True)
    mark(tmp_path / "run", "run")
    remove(tmp_path / "run" / "x")
    left = tmp_path / f".y{GONE}"
    (left / "z").mkdir(parents=True)
    (left / "to").symlink_to(tmp_path / "run")
    remove(left)
    (tmp_path / "empty").mkdir()
    remove(tmp_path / "empty")
    remove(tmp_path / "not there")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".made.key", "run"]
    assert (tmp_path / "run" / MARK).is_file(), "a link is not followed"


def test_a_file_put_into_a_folder_of_ours_keeps_it(tmp_path: Path) -> None:
    mark(tmp_path, "run")
    once(tmp_path / "final", 1, lambda tmp: (tmp.mkdir(), (tmp / "a").write_text("a")))
    (tmp_path / "final" / "model.gguf").write_text("converted by hand")
    with pytest.raises(NotWritable, match=r"model\.gguf"):
        once(tmp_path / "final", 2, lambda tmp: tmp.mkdir())
    assert (tmp_path / "final" / "model.gguf").read_text() == "converted by hand"


def test_a_file_of_ours_that_was_changed_is_somebody_elses(tmp_path: Path) -> None:
    once(tmp_path / "s", 1, lambda tmp: tmp.write_text("made"))
    (tmp_path / "s").write_text("by hand")
    with pytest.raises(NotWritable):
        remove(tmp_path / "s")


# ------------------------------------------------------------------------------------------------------ whole or absent


def test_a_flipped_byte_is_told_and_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark(tmp_path, "run")

    def make(tmp: Path) -> None:
        (tmp / "deep").mkdir(parents=True)
        (tmp / "deep" / "w").write_bytes(b"0" * 100)
        (tmp / "README.md").write_text("may be written anew")

    at = once(tmp_path / "pruned", {"k": 1}, make)
    (at / "README.md").write_text("anew")
    assert verify(at) == at and is_made(at, {"k": 1})
    (at / "deep" / "w").write_bytes(b"0" * 50 + b"1" + b"0" * 49)
    with pytest.raises(BadCheckpoint, match="not what prunetune wrote") as e:
        verify(at)
    assert f"{at / 'deep' / 'w'}: sha256 " in str(e.value) and "valid: sha256" in str(e.value)
    assert str(note_path(at)) in str(e.value)
    once(at, {"k": 1}, make)
    assert "made anew" in capsys.readouterr().err
    assert damage(at) is None
    (at / "deep" / "w").unlink()
    assert not is_made(at, {"k": 1})
    assert damage(at) is not None


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = tmp_path / "large"
    once(at, 1, lambda tmp: tmp.write_bytes(b"0" * notes.LARGE))
    with monkeypatch.context() as patch:
        patch.setattr(notes.hashlib, "file_digest", lambda *a: pytest.fail("hashed again"))
        assert damage(at) is None
    with at.open("r+b") as f:
        f.write(b"1")
    os.utime(at, ns=(0, 0))
    assert damage(at) is not None


def test_notes_of_version_0_1_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    note_path(tmp_path / "old").write_text(files.json_sha({"k": 1}))
    assert is_made(tmp_path / "old", {"k": 1}) and not is_made(tmp_path / "old", {"k": 2})
    assert verify(tmp_path / "old")


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"key": 1}', b"[]", b'{"key": "x", "files": 3}', b""])
def test_a_damaged_note_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_text("x")
    note_path(tmp_path / "x").write_bytes(content)
    with pytest.raises(BadCheckpoint, match="note"):
        read_note(tmp_path / "x")
    assert not is_made(tmp_path / "x", 1)


@pytest.mark.parametrize("instant", ["before", "after"])
def test_a_record_replaced_by_a_killed_process_is_whole(tmp_path: Path, instant: str) -> None:
    """The note names both contents until the next write: a kill between note and record leaves either."""
    mark(tmp_path, "run")
    path = tmp_path / "stage.json"
    for value in (1, 2):
        write_json(path, value)
    child = os.fork()
    if child == 0:
        real = Path.rename

        def rename(self: Path, to: Path) -> Path:
            if to == path and instant == "before":
                os._exit(9)
            found = real(self, to)
            if to == path:
                os._exit(9)
            return found

        Path.rename = rename  # type: ignore[method-assign]
        write_json(path, 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert read_json(path) == (2 if instant == "before" else 3)
    write_json(path, 4)
    assert read_json(path) == 4
    path.write_text("5\n")
    with pytest.raises(BadCheckpoint, match="not what prunetune wrote"):
        read_json(path)


def test_only_records_of_a_run_are_sealed(tmp_path: Path) -> None:
    write_json(tmp_path / "free.json", 1)
    mark(tmp_path / "run", "run")
    for name in ("stage.json", ".work/whole.json", f".x{TMP}/index.json", ".hidden.json"):
        write_json(tmp_path / "run" / name, 1)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.key")] == ["run/.stage.json.key"]


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def half(tmp: Path) -> None:
        tmp.mkdir()
        (tmp / "a").write_text("a")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NotWritable, match="no space left on the disk"):
        once(tmp_path / "x", 1, half)
    with pytest.raises(KeyboardInterrupt), fresh(tmp_path / "y") as tmp:
        tmp.mkdir()
        raise KeyboardInterrupt
    with pytest.raises(NotWritable, match="a folder"), replacing(tmp_path / "z") as tmp:
        tmp.write_text("z")
        (tmp_path / "z").mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["z"]


def test_leftovers_of_a_kill_go(tmp_path: Path) -> None:
    temporary(tmp_path / "x").mkdir()
    (temporary(tmp_path / "x") / "half").write_text("")
    once(tmp_path / "x", 1, lambda tmp: tmp.write_text("x"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.key", "x"]


# ------------------------------------------------------------------------------------------------------ the disk


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=str,
)
def test_a_full_disk_is_one_message_whoever_writes(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(NotWritable, match="no space left on the disk") as e, disk_errors(tmp_path / "x"):
        raise error
    assert str(tmp_path / "x") in str(e.value)
    with pytest.raises(NotWritable, match="no space left"), disk_errors():
        try:
            raise error
        except Exception as first:
            raise RuntimeError("unexpected pos 64 vs 0") from first


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^x$"), disk_errors(tmp_path):
        raise ValueError("x")
    with pytest.raises(PermissionError), disk_errors(tmp_path, denied=False):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(NotWritable, match="cannot be written"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_space_is_checked_before_the_first_byte(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "there", 1, "a model")
    with pytest.raises(NotWritable, match=r"no space left for a model of 1000000000\.0 GB"):
        check_space(tmp_path / "not" / "there", 10**18, "a model")


def test_several_processes_mark_a_folder_at_once(tmp_path, monkeypatch):
    """The other one's rename takes the hidden file just before ours."""
    sync, times = files._sync, []

    def other_first(path):
        if not times:
            times.append(path)
            path.rename(path.parent / files.MARK)
        sync(path)

    monkeypatch.setattr(files, "_sync", other_first)
    files.mark(tmp_path, "run")
    assert len(times) == 1 and files.mark_of(tmp_path) == "run"
    assert [p.name for p in tmp_path.iterdir()] == [files.MARK]
