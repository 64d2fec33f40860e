"""Attacks on the sandbox: each fails with its reason, leaves nothing running and changes nothing outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.tasks.sandbox import leftovers

from prunetune.errors import TaskError
from prunetune.tasks.sandbox.program import Jail, Limits, Outcome, run_program, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TIGHT = Limits(wall_seconds=8, cpu_seconds=1)


def run(program: str, limits: Limits = TIGHT) -> Outcome:
    return run_program(program, allowed=True, limits=limits)


MARK = f"test-{os.getpid()}-"  # other tests may have sandboxes of their own at the same time


def jails() -> list[str]:
    """Command lines of all processes of the sandboxes of these tests."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode()
        except OSError:
            continue
        if f"/{MARK}" in line:
            found.append(line)
    return found


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sandboxes of one test are mounted; nothing may be left there or running at its end."""
    folder = tmp_path / f"{MARK}jails"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("prunetune.tasks.sandbox.program.PROGRAM", f"/sandbox/{MARK}program.py")
    yield folder
    wait_for(lambda: not jails())
    assert jails() == []
    assert list(folder.iterdir()) == []


def wait_for(happened: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_good_program_runs() -> None:
    outcome = run("import math, collections\nprint(math.sqrt(16))\nassert sorted([2, 1]) == [1, 2]")
    assert (outcome.ok, outcome.reason, outcome.output) == (True, "", "4.0\n")


def test_nothing_runs_without_permission() -> None:
    with pytest.raises(TaskError, match="explicit permission"):
        run_program("1", allowed=False)


@pytest.mark.parametrize("ending", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_ending_early_is_no_success(ending: str) -> None:
    assert run(ending).reason == "ended before its last line"


def test_a_failed_assertion_and_a_syntax_error_say_so() -> None:
    assert run("assert 1 == 2, 'no'").reason == "AssertionError: no"
    assert "SyntaxError" in run("def f(:").reason


def test_fork_bomb() -> None:
    outcome = run(
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", Limits(wall_seconds=3)
    )
    assert not outcome.ok
    assert "timed out" in outcome.reason or "CPU time" in outcome.reason


def test_processes_are_counted() -> None:
    counting = (
        "import os, time\nn = 0\ntry:\n    while n < 100:\n        if os.fork() == 0:\n            time.sleep(60)\n"
        "        n += 1\nexcept BlockingIOError:\n    print(n)\n"
    )
    outcome = run(counting)
    assert outcome.ok and int(outcome.output) == TIGHT.processes - 1


def test_ten_gigabyte_list() -> None:
    assert run("x = [0] * (10 * 2**30 // 8)").reason == "MemoryError"


def test_endless_loop() -> None:
    outcome = run("while True: pass")
    assert outcome.reason in ("used up its CPU time", "timed out after 8 s")


def test_sleeping_for_ever() -> None:
    outcome = run("import time; time.sleep(1000)", Limits(wall_seconds=1))
    assert outcome.reason == "timed out after 1 s" and outcome.seconds < 6


def test_printing_without_end() -> None:
    outcome = run("while True: print('x' * 1000)")
    assert outcome.reason == f"printed more than {TIGHT.output_bytes} bytes"
    assert len(outcome.output) <= TIGHT.output_bytes


def test_writing_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    tree = "\n".join(
        f"try:\n    open({str(p)!r} + '/evil', 'w')\n    print('WROTE', {str(p)!r})\nexcept OSError: pass"
        for p in [
            outside,
            "/",
            "/tmp",
            "/usr",
            "/usr/local/bin",
            sys.base_prefix,
            "/dev",
            "/etc",
            Path.cwd(),
            Path.home(),
        ]
    )
    outcome = run(tree)
    assert outcome.ok and outcome.output == ""
    assert not list(outside.iterdir())
    assert not Path("/tmp/evil").exists() and not (Path(sys.base_prefix) / "evil").exists()


def test_writing_too_much() -> None:
    assert "File too large" in run("open('big', 'wb').write(b'0' * 10**8)").reason
    several = "for i in range(100): open(str(i), 'wb').write(b'0' * (4 << 20))"
    assert "No space left" in run(several).reason
    assert "No space left" in run("for i in range(5000): open(str(i), 'w')").reason


def test_the_working_folder_is_empty_and_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    outcome = run("import os\nprint(os.listdir('.'), 'SECRET_TOKEN' in os.environ, os.path.exists('/proc/1'))")
    assert outcome.output == f"['{MARK}program.py'] False False\n"


def test_reading_files_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    tmp_path.chmod(0o777)
    assert "FileNotFoundError" in run(f"print(open({str(tmp_path / 'secret')!r}).read())").reason


def test_opening_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        outcome = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 3)")
        assert "unreachable" in outcome.reason
        with pytest.raises(TimeoutError):
            server.accept()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0prunetune-test-{os.getpid()}")
        listener.listen()
        outcome = run(f"import socket\nsocket.socket(socket.AF_UNIX).connect('\\0prunetune-test-{os.getpid()}')")
        assert "refused" in outcome.reason


def test_killing_its_parent_and_everybody() -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    program = (
        "import os, signal\n"
        f"for pid in [os.getppid(), 1, {os.getpid()}, {bystander.pid}, -1]:\n"
        "    try:\n        os.kill(pid, signal.SIGKILL)\n        print('KILLED', pid)\n    except OSError: pass"
    )
    outcome = run(program)
    assert "KILLED" not in outcome.output.replace("KILLED 1\n", "")  # process 1 cannot be killed from inside
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_children_that_leave_their_session_end_with_the_program() -> None:
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)"
    )
    assert run(program).ok  # and _nothing_left sees that they are gone


def test_regaining_rights() -> None:
    program = (
        "import os, ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "try:\n    os.setuid(0)\n    print('uid', os.getuid() if os.getuid() == 0 else '')\nexcept OSError: pass\n"
        "print([libc.mount(b'tmpfs', b'/usr', b'tmpfs', 0, None), libc.umount2(b'/usr', 2), libc.chroot(b'/sandbox'),"
        " libc.sethostname(b'x', 1), libc.unshare(0x00020000)])"
    )
    outcome = run(program)
    assert outcome.output.splitlines()[-1] == "[-1, -1, -1, -1, -1]"


def test_a_killed_caller_takes_the_sandbox_with_it(place: Path) -> None:
    script = (
        "from prunetune.tasks.sandbox import program\n"
        f"program.PROGRAM = '/sandbox/{MARK}program.py'\n"
        "program.run_program('import time; time.sleep(300)', allowed=True)"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(place)})
    wait_for(lambda: len(leftovers.below(caller.pid)) == 3)  # launcher, process 1, program
    running = leftovers.below(caller.pid)
    assert len(running) == 3
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert leftovers.gone(running)


BY_ANOTHER_USER = """
import sys
sys.path.insert(0, sys.argv[1])
from prunetune.tasks.sandbox.program import run_program
program = '''
import ctypes
try:
    open("/usr/x", "w")
except OSError as e:
    print(e.strerror)
print(ctypes.CDLL(None).umount2(b"/sandbox", 2))
'''
outcome = run_program(program, allowed=True)
print(outcome.ok, outcome.reason, outcome.output.split())
from prunetune.tasks.sandbox.judge import judge_program
from prunetune.tasks.sandbox.program import Limits
tests = ["assert add(1, 2) == 3"]
for body in "return a + b", "return a - b", "os._exit(0)":
    print(judge_program("import os\\ndef add(a, b): " + body, tests=tests, allowed=True).reason)
many = "import os, time\\nfor _ in range(5):\\n    if os.fork() == 0: break\\nx = bytearray(60 << 20); time.sleep(5)"
print(run_program(many, allowed=True, limits=Limits(memory_bytes=128 << 20)).reason)
shared = "import ctypes\\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1600) == -1 and ctypes.CDLL(None).unshare(0x10020000) == -1"
print(run_program(shared, allowed=True).ok)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to become another user")
def test_the_same_for_an_ordinary_user() -> None:
    """Without root, a user namespace does it."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None or subprocess.run([python, "-c", "import dataclasses"], check=False).returncode:
        pytest.skip("no interpreter that another user may run")
    with tempfile.TemporaryDirectory(prefix="prunetune-test-", dir="/tmp") as folder:
        package = Path(folder) / "prunetune"
        shutil.copytree(Path(__file__).parents[3] / "src" / "prunetune", package, ignore=lambda *_: ["demo", "recipes"])
        (package / "__init__.py").write_text("")
        Path(folder).chmod(0o755)
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", BY_ANOTHER_USER, folder],
            capture_output=True, text=True, check=False, cwd="/", env={},
        )  # fmt: skip
    said = done.stdout.splitlines()
    assert said[0] == "True  ['Read-only', 'file', 'system', '-1']", done.stdout + done.stderr
    assert said[1:4] == ["", "AssertionError", "ended before its last line"], done.stdout + done.stderr
    assert said[4:] == ["used more memory than it may, all its processes together", "True"], done.stdout + done.stderr


def test_a_machine_that_cannot_isolate_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = b"Operation not permitted: unshare"
    launcher = f"import os, sys\nos.read(int(sys.argv[1]), 9999)\nos.write(int(sys.argv[2]), {refusal!r})\n"
    monkeypatch.setattr("prunetune.tasks.sandbox.jail.LAUNCH", launcher)
    with pytest.raises(TaskError, match=r"cannot isolate[\s\S]*not permitted: unshare[\s\S]*user.max_user_namespaces"):
        run("print('ran')")


def test_a_jail_with_pipes() -> None:
    python = os.path.realpath(sys.executable)
    jail = Jail([python, "-c", "print(input()[::-1])"]).start()
    assert jail.process.stdin is not None and jail.process.stdout is not None
    jail.process.stdin.write(b"abc\n")
    assert jail.process.stdout.readline() == b"cba\n"
    jail.stop()
