"""A run killed again and again in one folder: `python -m tests.loop.kills AT SEED KILLS` (a process of its own forks).

Half of the kills come at file-system calls that end something (a rename into place, a deletion), just before or just
after one; half at random moments. Every child goes on where the last one was killed. Prints the kills that were made.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny_run import tiny_recipe

from prunetune.common import files
from prunetune.common.progress import Watch
from prunetune.loop.loop import prune_tune_loop
from prunetune.recipe.schema import Recipe

CALLS = ((Path, "rename"), (Path, "unlink"), (files.shutil, "rmtree"))


def recipe_of(at: Path) -> Recipe:
    """Two short rounds with a patch each, a checkpoint after every step of recovery."""
    cpt = {"type": "cpt", "samples": 32, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    value = tiny_recipe(at, recover=[{**cpt, "checkpoint_minutes": 1e-9}], compensate="least-squares").model_dump(
        mode="json"
    )
    value["prune"] |= {"target": 0.85, "layers": 0, "step": 0.1}
    value["evaluate"] |= {"latency_repeats": 0}
    value["do_no_harm"] = True
    return Recipe.parse(value)


def listening(root: Path, hear: Callable[[str], None]) -> None:
    """Call `hear` just before and after every call that renames or deletes."""
    for owner, name in CALLS:
        real: Any = getattr(owner, name)

        def call(path: Any, *args: Any, _real: Any = real, _name: str = name, **more: Any) -> Any:
            what = f"{_name} {os.path.relpath(args[0] if _name == 'rename' else path, root)}"
            hear(f"before {what}")
            found = _real(path, *args, **more)
            hear(f"after {what}")
            return found

        setattr(owner, name, call)


def child(at: Path, out: Path, hear: Callable[[str], None] | None) -> int:
    """Run in a process of its own, and start counting; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(at)
        if hear is not None:
            listening(out, hear)
        prune_tune_loop(recipe_of(at), out, Watch(quiet=True))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def events_of(at: Path) -> list[str]:
    """The names of all such calls of an undisturbed run, into `AT/straight`, in the order of their first occurrence."""
    log = at / "events"

    def hear(event: str) -> None:
        with log.open("a") as f:
            f.write(event + "\n")

    _, status = os.waitpid(child(at, at / "straight", hear), 0)
    if status:
        sys.exit("the undisturbed run failed")
    return list(dict.fromkeys(log.read_text().splitlines()))


def chain(at: Path, seed: int, kills: int) -> list[str]:
    """Kill runs in `AT/killed-1`, `-2`, … as often as wanted, until each is done; what they were killed at."""
    draw, began = random.Random(seed), time.monotonic()
    events = events_of(at)
    whole = time.monotonic() - began
    wanted = sorted(draw.sample(range(len(events)), min(len(events), kills - kills // 2)))
    plan = [events[i] for i in wanted]
    moments = [draw.uniform(0.02, 0.25) * whole for _ in range(kills // 2)]
    done: list[str] = []
    hit, runs = at / "hit", 1
    while True:
        timed = moments.pop() if moments and (not plan or draw.random() < 0.5) else None

        def hear(event: str, wanted: tuple[str, ...] = () if timed else tuple(plan)) -> None:
            if event in wanted:
                with hit.open("w") as f:
                    f.write(event)
                os.kill(os.getpid(), signal.SIGKILL)

        pid = child(at, at / f"killed-{runs}", hear)
        if timed is not None:
            time.sleep(timed)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit(f"a start after {done[-1:]} failed")
            moments += [timed] if timed is not None else []  # it was quicker
            if not (plan or moments):
                return done
            runs += 1  # it was done before all kills were made: another one
            continue
        done.append(f"after {timed:.2f} s" if timed is not None else hit.read_text())
        if timed is None:
            plan.remove(done[-1])


if __name__ == "__main__":
    place, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    recipe_of(place)  # the model and the rows are there before any child
    for old in place.glob("killed-*"):
        shutil.rmtree(old)
    print(json.dumps(chain(place, number, count)))
