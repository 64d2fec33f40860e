"""`python -m prunetune.tune JOB.json ...`: recovery jobs, one after another, alone or under `accelerate launch`.

Progress goes to stdout as lines `step DONE TOTAL`; a result to `result.json` in its job's work folder. Exit 2 with one
message on a user's error.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from prunetune.common import stopping
from prunetune.common.files import write_json
from prunetune.errors import PrunetuneError
from prunetune.tune.job import TuneJob, result_path
from prunetune.tune.launch import MARK
from prunetune.tune.stage import run_job


def main(argv: list[str]) -> int:
    """Run the jobs named by the arguments."""
    if not argv:
        print("usage: python -m prunetune.tune JOB.json ...", file=sys.stderr)
        return 2
    first, out = os.environ.get("RANK", "0") == "0", sys.stdout  # which trackers do not get

    def progress(done: int, total: int) -> None:
        print(f"step {done} {total}", file=out, flush=True)

    try:
        for job in [TuneJob.read(Path(name)) for name in argv]:
            result = run_job(
                job, (lambda done, total: print(f"step {done} {total}", file=out, flush=True)) if first else None
            )
            if first:
                write_json(result_path(job), result.to_json())
    except KeyboardInterrupt:
        return 128 + int(stopping.asked() or signal.SIGTERM)
    except PrunetuneError as e:
        print(f"{MARK}{e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    with stopping.listening():
        status = main(sys.argv[1:])
    sys.exit(status)
