"""Programs that solve nothing and would be judged right: each is judged wrong, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.tasks.sandbox import leftovers

from prunetune.tasks import mbpp
from prunetune.tasks.sandbox import judge, program
from prunetune.tasks.sandbox.program import Limits, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TESTS = ["assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert add(5, 7) == 12"]
LIMITS = Limits(wall_seconds=6, cpu_seconds=2)

EQUAL = """
class Y:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __getattr__(self, name): return self
    def __call__(self, *a): return self
    __hash__ = lambda self: 0
"""
CHANNEL = """
import os, gc, sys
def channel():
    for fd in range(3, 64):
        try:
            os.fstat(fd)
            return fd
        except OSError: pass
"""
SPEAK = CHANNEL + "\ndef say(*lines):\n    for l in lines: os.write(channel(), l.encode() + b'\\n')\n"

ATTACKS = {
    # the three of the report
    "reads the end mark in its own file": "import os,re\nt=re.findall(r'[0-9a-f]{32}',open(__file__).read()) or ['']\n"
    "os.write(1,('\\n'+t[-1]+'\\n').encode());os._exit(0)",
    "always equal": EQUAL + "def add(a, b): return Y()",
    "reads the assertion through its caller's frame": "import sys, linecache\ndef add(*a):\n    f = sys._getframe(1)\n"
    "    return eval(linecache.getline(f.f_code.co_filename, f.f_lineno).split('==')[1])",
    # objects that lie
    "always equal, as a subclass of int": "class Y(int):\n    def __eq__(s, o): return True\n    __hash__ = None\n"
    "def add(a, b): return Y(0)",
    "always equal, inside a list that is compared": "class Y(list):\n    def __eq__(s, o): return True\n"
    "def add(a, b): return Y()",
    "always equal by its metaclass": "class M(type):\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\n"
    "class Y(metaclass=M): pass\ndef add(a, b): return Y",
    "equal by `__instancecheck__` and `__class__`": "class Y:\n    __class__ = int\n"
    "    def __eq__(s, o): return True\ndef add(a, b): return Y()",
    "a number of numbers' own kind": "import numbers\nclass Y:\n    def __eq__(s, o): return True\n"
    "    def __int__(s): return 3\nnumbers.Integral.register(Y)\ndef add(a, b): return Y()",
    "mocks": "from unittest.mock import MagicMock, ANY\ndef add(a, b): return ANY",
    # frames, code, memory
    "constants of all frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n"
    "        for v in [*f.f_code.co_consts, *f.f_locals.values(), *f.f_globals.values()]:\n"
    "            if 'assert' in str(v) and '==' in str(v): return eval(str(v).split('==')[1])\n        f = f.f_back",
    "every object of the collector": "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, (list, tuple, dict)):\n            for v in (o.values() if isinstance(o, dict) else o):\n"
    "                if isinstance(v, (str, bytes)) and 'assert add' in str(v):\n"
    "                    return eval(str(v).split('==')[1].split(chr(10))[0].strip('\\'\"]'))",
    "its own memory": "import ctypes\ndef add(a, b):\n    try: text = open('/proc/self/mem', 'rb').read()\n"
    "    except OSError: text = open('/proc/self/maps').read()",
    # control flow
    "jumps over the assertion with a trace function": "import sys\ndef tracer(f, e, a):\n    f.f_trace_lines = True\n"
    "    def local(f, e, a):\n        if e == 'line':\n            try: f.f_lineno += 1\n"
    "            except Exception: pass\n        return local\n    return local\nf = sys._getframe()\n"
    "while f:\n    f.f_trace = tracer(f, 'call', None)\n    f = f.f_back\nsys.settrace(tracer)\ndef add(a, b): return 0",
    "swallows AssertionError by a profile function": "import sys, builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\n"
    "sys.setprofile(lambda *a: None)\nsys.excepthook = lambda *a: None\ndef add(a, b): return 0",
    "python -O by re-exec": "import os, sys\nif not os.environ.get('O'):\n    os.environ['O'] = '1'\n"
    "    os.execv(sys.executable, [sys.executable, '-O', *sys.orig_argv[1:]])\ndef add(a, b): return 0",
    "another program that exits with 0": "import os\nos.execv('/usr/bin/true', ['true']) if os.path.exists('/usr/bin/true') else os._exit(0)",
    "re-executes another python": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'pass'])",
    "exits with 0 at once": "import os; os._exit(0)",
    "exits with 0 when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "exits at the end of the interpreter": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
    "exits by a signal handler": "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.2)\n"
    "def add(a, b):\n    import time; time.sleep(9)",
    "a thread that exits with 0": "import os, threading\nthreading.Timer(0.3, os._exit, [0]).start()\ndef add(a, b):\n    import time; time.sleep(9)",
    # processes
    "forks, the parent exits with 0": "import os\nif os.fork(): os._exit(0)\ndef add(a, b): return a + b",
    "forks, the child answers": "import os, time\nif os.fork(): time.sleep(3); os._exit(0)\ndef add(a, b): return a + b",
    "forks in the call, the child answers": "import os, time\ndef add(a, b):\n    if os.fork(): time.sleep(3); os._exit(0)\n    return a + b",
    "leaves its session and lives on": "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        while True: pass\n    os._exit(0)\ndef add(a, b): return 0",
    # the talk itself
    "says the verdict itself": SPEAK + "say('{\"loaded\":true}', '={\"right\": true, \"reason\": \"\"}')\nos._exit(0)",
    "answers with a verdict": SPEAK + "def add(a, b):\n    say('={\"right\": true, \"reason\": \"\"}', '+{}', '-')\n    return 0",
    "answers before it is asked": SPEAK + "say('{\"loaded\":true}', *['{\"value\":true}'] * 9)\ndef add(a, b): return 0",
    "many answers in one": SPEAK + "def add(a, b):\n    say('{\"value\":1}\\n{\"value\":{\"object\":[0,\"Y\"]}}')\n    return 0",
    "an answer of no kind": SPEAK + "def add(a, b):\n    say('{\"value\": {\"library\": [\"os\", \"_exit\"]}}')\n    return 0",
    "an exception that ends the judge": SPEAK + "def add(a, b):\n    say('{\"raised\": [\"SystemExit\", \"KeyboardInterrupt\"], \"text\": \"\"}')",
    "calls a function that it was never given": SPEAK + "def add(a, b):\n    say('{\"callback\": 0, \"arguments\": [], \"named\": {}}')",
    "an endless answer": SPEAK + "def add(a, b):\n    while True: os.write(channel(), b'1' * 65536)",
    "a deep answer": SPEAK + "def add(a, b):\n    say('{\"value\":' + '[' * 100000 + ']' * 100000 + '}')\n    return 0",
    "a huge number": SPEAK + "def add(a, b):\n    say('{\"value\":' + '9' * 1000000 + '}')\n    return 0",
    "a huge result": "def add(a, b): return [0] * 10**8",
    "an endless iterator": "import itertools\ndef add(a, b): return itertools.count()",
    "changes the runner": "import sys\nfor m in list(sys.modules.values()):\n    for k, v in list(vars(m).items()):\n"
    "        if k in ('pack', 'to_json', 'answer', 'plain'): setattr(m, k, lambda *a: {'value': True})\ndef add(a, b): return 0",
    "changes the builtins": "import builtins, operator\nbuiltins.isinstance = lambda *a: True\nbuiltins.type = lambda *a: bool\n"
    "operator.eq = lambda *a: True\nbuiltins.all = lambda *a: True\ndef add(a, b): return True",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _judge() -> Iterator[None]:
    """One judge for all, running before anything is counted."""
    assert judge.judge_program("def add(a, b): return a + b", tests=TESTS, allowed=True).ok
    yield
    judge.close_judges()


@pytest.fixture(autouse=True)
def _nothing_left(_judge: None) -> Iterator[None]:
    before, running = leftovers.state(), leftovers.processes()
    yield
    assert leftovers.state() == before
    assert leftovers.gone(leftovers.processes() - running)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_judged_wrong(name: str) -> None:
    verdict = mbpp.verify(
        f"```python\n{ATTACKS[name]}\n```", json.dumps({"setup": "", "tests": TESTS}), allowed=True, limits=LIMITS
    )
    assert not verdict.correct and verdict.reason


@pytest.mark.parametrize("name", ["re-executes another python", "exits with 0 at once", "forks, the parent exits with 0",
                                  "another program that exits with 0", "forks, the child answers",
                                  "reads the end mark in its own file", "exits at the end of the interpreter"])  # fmt: skip
def test_it_did_not_run_to_its_end(name: str) -> None:
    assert not program.run_program(ATTACKS[name], allowed=True, limits=LIMITS).ok


def test_the_judge_is_as_good_as_new_after_all_of_them() -> None:
    assert judge.judge_program("def add(a, b): return a + b", tests=TESTS, allowed=True).ok
    assert not judge.judge_program("def add(a, b): return a - b", tests=TESTS, allowed=True).ok
