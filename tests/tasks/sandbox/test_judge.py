"""Tests of every shape judge what a program gives back, and what cannot be judged by plain data is refused."""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunetune.errors import TaskError
from prunetune.tasks import mbpp
from prunetune.tasks.sandbox.confined.wire import pack, to_json, unpack
from prunetune.tasks.sandbox.judge import close_judges, judge_program
from prunetune.tasks.sandbox.program import Limits, why_not

needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

NODE = "class Node:\n    def __init__(self, v): self.v, self.left, self.right = v, None, None\n"
POINT = "import collections\nPoint = collections.namedtuple('Point', 'x y')\n"

# program, setup, test, right
SHAPES: list[tuple[str, str, str, bool]] = [
    ("def f(x): return x % 2 == 0", "", "assert f(4)", True),
    ("def f(x): return x % 2 == 0", "", "assert not f(4)", False),
    ("def f(x): return x % 2 == 0", "", "assert f(4) is True and f(3) is False and f(2) != f(1)", True),
    ("def f(x): return x / 3", "import math", "assert math.isclose(f(1), 0.333, rel_tol=0.01)", True),
    ("def f(x): return x / 3", "import math", "assert math.isclose(f(1), 0.5, rel_tol=0.01)", False),
    ("def f(x): return x / 3", "", "assert abs(f(1) - 1 / 3) < 1e-9 and round(f(1), 2) == 0.33", True),
    ("def f(x): return float('nan')", "", "assert f(1) != f(1)", True),
    ("def f(x): return float('inf')", "", "assert f(1) == float('inf') and f(1) > 10 ** 300", True),
    ("def f(a, b): return [*a, *b]", "", "assert set(f((1, 2), [2, 3])) == set((1, 2, 3))", True),
    ("set = lambda x: 0\nfrozenset = sorted = list = set\ndef f(a, b): return []", "",
     "assert set(f((1, 2), [2, 3])) == set((1, 2, 3))", False),
    ("import builtins\nbuiltins.set = builtins.sorted = builtins.len = lambda *a: 0\ndef f(): return [9]", "",
     "assert sorted(f()) == sorted([1, 2]) and len(f()) == len([1, 2])", False),
    ("def sum(a, b): return a + b", "", "assert sum(10, 15) == 25", True),
    ("x = 1", "", "assert sum([10, 15]) == 25 and len('ab') == 2", True),
    ("import sys\ndef size(t): return sys.getsizeof(t)", "", "assert size((1, 2)) == sys.getsizeof((1, 2))", True),
    ("class sys:\n    getsizeof = lambda x: 7\ndef size(t): return 7", "", "assert size((1, 2)) == sys.getsizeof((1, 2))", False),
    ("def f(x): return f'{x:08.3f}'.encode()", "", "assert f(2) == b'0002.000' and f(1).decode() == '0001.000'", True),
    ("def f(): return {1: (2, {3, 4}), 'k': [None, 5.5, True, frozenset({1})]}", "",
     "assert f() == {1: (2, {3, 4}), 'k': [None, 5.5, True, frozenset({1})]} and list(f()) == [1, 'k']", True),
    ("def f(): return (1, 2)", "", "assert f() == [1, 2]", False),
    ("from collections import Counter, OrderedDict, defaultdict, deque\n"
     "def f(): return [Counter('aab'), OrderedDict(a=1), defaultdict(int, b=2), deque([1, 2], 5)]", "",
     "assert f() == [{'a': 2, 'b': 1}, {'a': 1}, {'b': 2}, __import__('collections').deque([1, 2])]", True),
    ("def f(d): return d.keys(), d.values(), d.items()", "",
     "assert f({1: 2})[0] == {1} and list(f({1: 2})[1]) == [2] and f({1: 2})[2] == {(1, 2)}", True),
    ("def f(n): return map(str, range(n))", "", "assert list(f(3)) == ['0', '1', '2'] and next(f(9)) == '0'", True),
    ("def f(n):\n    while True: yield n; n += 1", "", "g = f(3)\nassert [next(g), next(g), next(g)] == [3, 4, 5]", True),
    ("import re\ndef f(t): return re.search('b+', t)", "", "assert f('abb') and not f('ccc') and f('abb').group() == 'bb'", True),
    ("def f(): return 2 ** 5000, -2 ** 60, -0.0, 1j, 1 << 53", "",
     "assert f() == (2 ** 5000, -(2 ** 60), 0.0, 1j, 9007199254740992)", True),
    ("def f(s): return s + '\\n\\ud83d\\\\\"\\x00é\\u2028😀'", "", "assert f('<') == '<\\n\\ud83d\\\\\"\\x00é\\u2028😀'", True),
    ("def f(a, *b, c=3, **d): return a, b, c, d", "", "assert f(1, 2, c=4, e=5) == (1, (2,), 4, {'e': 5})", True),
    # arguments: changed in place, functions, types
    ("def f(l): l.sort(); l.append(9)", "", "l = [3, 1]\nassert f(l) is None and l == [1, 3, 9]", True),
    ("def f(l): l.append([9])", "", "l = [[1]]\nassert f(l) is None and l == [[1]]", False),
    ("def f(d, *, s): d['a'] = 1; s.add(2)", "", "d, s = {}, set()\nf(d, s=s)\nassert (d, s) == ({'a': 1}, {2})", True),
    ("def f(g, l): return [g(x) for x in l]", "", "assert f(lambda x: x * 2, [1, 2]) == [2, 4] and f(str, [1]) == ['1']", True),
    ("def f(g): return g(lambda x: x + 1)", "", "assert f(lambda h: h(h(1))) == 3", True),
    ("def f(t, l): return [x for x in l if isinstance(x, t)]", "", "assert f(int, [1, 'a']) == [1] and f(str, [1, 'a']) == ['a']", True),
    ("import math\ndef f(g): return g(9)", "import math", "assert f(math.sqrt) == 3", True),
    # what is raised
    ("def f(x):\n    if x < 0: raise ValueError('negative')", "",
     "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'negative'", True),
    ("class Mine(KeyError): pass\ndef f(): raise Mine('k')", "", "try: f()\nexcept KeyError: pass\nelse: assert False", True),
    ("def f(): pass", "", "try: f()\nexcept ValueError: pass\nelse: assert False", False),
    # objects that stay in the program
    (NODE + "def f(n): return 0 if n is None else 1 + max(f(n.left), f(n.right))",
     "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)", "assert f(root) == 3 and root.left.v == 2", True),
    (NODE + "def f(n): return 0", "root = Node(1)", "assert f(root) == 1", False),
    ("class S(list):\n    def push(self, x): self.append(x)", "s = S()\ns.push(1)\ns.push(2)",
     "assert s == [1, 2] and len(s) == 2 and s[0] == 1 and 2 in s and s.pop() == 2 and list(s) == [1]", True),
    (POINT + "def f(): return Point(1, 2)", "", "assert f() == (1, 2) and f().y == 2 and Point(3, 4).x == 3", True),
    ("class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n    def __repr__(s): return f'V{s.x}'", "",
     "a, b = V(1), V(2)\nassert (a + b).x == 3 and str(a + b) == 'V3' and isinstance(a, V) and a is not b", True),
    ("import enum\nclass E(enum.IntEnum):\n    A = 1\ndef f(): return E.A", "", "assert f() == 1 and E.A < 2", True),
    ("x = 3", "import math", "assert math.pi > x and x == 3", True),
    ("n = 0\ndef f():\n    global n\n    n += 1", "", "f(); f()\nassert n == 2", True),
    # the program's word about its own objects is no proof
    ("class V:\n    def __init__(s, x): pass\n    def __eq__(s, o): return True", "", "assert V(1) == V(2)", False),
    ("class V(int):\n    def __eq__(s, o): return True\n    def __hash__(s): return 0\ndef f(): return V(5)", "", "assert f() in [1, 2, 3]", False),
    ("class V:\n    def __contains__(s, o): return True\n    def __iter__(s): return iter([])\ndef f(): return V()", "", "assert 3 in f()", False),
    ("class V:\n    __lt__ = __gt__ = __le__ = __ge__ = lambda s, o: True\ndef f(): return V()", "", "assert 2 < f() < 3", False),
    # tests that cannot be right
    ("def f(): return 1", "x = (", "assert f() == 1", False),
    ("def f(): return 1", "", "raise SystemExit(0)", False),
    ("def f(x): return 1", "", "assert f(object()) == 1", False),
    ("f = 3", "", "assert f() == 1", False),
]  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize("case", range(len(SHAPES)))
def test_shapes(case: int) -> None:
    program, setup, test, right = SHAPES[case]
    outcome = judge_program(program, setup=setup, tests=[test], allowed=True)
    assert outcome.ok is right, outcome
    assert bool(outcome.reason) is not right


@needs_sandbox
def test_reasons_say_what_is_wrong() -> None:
    def reason(program: str, test: str) -> str:
        return judge_program(program, tests=[test], allowed=True, limits=Limits(wall_seconds=2)).reason

    assert reason("1 / 0", "assert f()") == "ZeroDivisionError: division by zero"
    assert "SyntaxError" in reason("def f(:", "assert f()")
    assert reason("", "assert f()") == "NameError: name 'f' is not defined"
    assert reason("def f(): return g()", "assert f()") == "NameError: name 'g' is not defined"
    assert reason("def f(x): pass", "assert f()").startswith("TypeError: f() missing 1 required")
    assert reason("def f():\n    while True: pass", "assert f()") == "timed out after 2 s"
    assert reason("def f(): return [1]", "assert f() == [2], 'no'") == "AssertionError: no"
    assert "compares objects of the program's own" in reason("class V: pass", "assert V() == V()")
    assert "see `given`" in reason("def f(x): return 1", "class T: pass\nassert f(T()) == 1")


@needs_sandbox
def test_the_candidate_may_use_what_is_given_and_the_imports_of_the_setup() -> None:
    reference = json.dumps(
        {"given": NODE, "setup": "import math", "tests": ["assert f(Node(3), 4) == 2.0 and math.pi"]}
    )
    assert mbpp.verify(
        "def f(n, x): return math.sqrt(x) if isinstance(n, Node) else 0", reference, allowed=True
    ).correct


@needs_sandbox
def test_from_several_threads_and_after_a_fork() -> None:
    def one(i: int) -> None:
        right[i] = judge_program("def f(x): return x", tests=[f"assert f({i}) == {i}"], allowed=True).ok

    right: dict[int, bool] = {}
    threads = [threading.Thread(target=one, args=[i]) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert right == {0: True, 1: True, 2: True}
    one(3)  # the judges of ended threads may be gone
    child = os.fork()
    if child == 0:
        one(4)
        close_judges()
        os._exit(0 if right[4] else 1)
    assert os.waitpid(child, 0)[1] == 0
    one(5)
    assert right[3] and right[5]


def test_nothing_runs_without_permission() -> None:
    with pytest.raises(TaskError, match="explicit permission"):
        judge_program("", tests=[], allowed=False)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.fractions() | st.decimals()
    | st.dates() | st.timedeltas() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.frozensets(st.integers(), max_size=1) | st.sets(st.text(), max_size=1) | st.lists(inner).map(deque),
    max_leaves=5,
)  # fmt: skip


def refuse(*what: Any) -> Any:
    raise LookupError(what)


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_plain_data_come_back_as_they_were(value: Any) -> None:
    packed = pack(value, refuse)
    for seen in (json.loads(to_json(packed)), eval(repr(packed), {"inf": float("inf"), "nan": float("nan")})):
        assert repr(unpack(seen, refuse)) == repr(value)
    assert to_json(packed).isascii() and "\n" not in to_json(packed)


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda x: st.lists(x, max_size=4) | st.dictionaries(
                        st.sampled_from(["tuple", "dict", "set", "range", "deque", "Decimal", "int", "bytes", "object", "own",
                                         "library", "global", "date", "Fraction", "Counter", "ellipsis"]), x, max_size=2),
                    max_leaves=10))  # fmt: skip
def test_any_message_is_plain_data_or_refused(data: Any) -> None:
    """Whatever a program sends: new values of the types of this list, or an exception; nothing else is called."""
    try:
        value = unpack(data, refuse)
    except Exception:
        return
    for part in _parts(value):
        assert type(part) in (
            type(None), bool, int, float, str, bytes, bytearray, complex, list, tuple, dict, set, frozenset, range, deque, Counter,
            OrderedDict, defaultdict, Decimal, Fraction, datetime.date, datetime.time, datetime.datetime, datetime.timedelta,
            type(...), type({}.keys()), type({}.values()), type({}.items()),
        )  # fmt: skip


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        for part in value:
            yield from _parts(part)
