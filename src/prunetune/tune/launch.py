"""A recovery job as a process of its own under `accelerate launch`: several GPUs or machines, or two CPU processes.

    run_launched(job, "ddp --num_processes 4")            # a shipped config, with further arguments
    run_launched(job, "--cpu --num_processes 2")          # plain arguments of accelerate launch
    run_launched(job, "--config_file my.yaml")

The caller holds no model meanwhile. Nothing but JSON passes between the two: the job in, the result out.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prunetune.common.files import remove
from prunetune.common.outputs import work_folder
from prunetune.common.yaml import read_mapping
from prunetune.errors import MissingPath, RecipeError, TuneError, UnknownName
from prunetune.models.folders import is_wrapper
from prunetune.tune.job import Progress, TuneJob, TuneResult, read_result, result_path

CONFIGS = Path(__file__).parent / "launchers"
SHIPPED = ("ddp", "fsdp2", "zero2", "zero3")


def launcher_arguments(launcher: str) -> list[str]:
    """Arguments of `accelerate launch` for a recipe's `launcher`; a leading name stands for its shipped config.

    Raises:
        UnknownName: The first word is neither an option nor a shipped config.
        MissingPath: A config file that is not there.
    """
    try:
        words = shlex.split(launcher)
    except ValueError as e:
        raise RecipeError(f"this launcher cannot be read ({e})", value=launcher) from None
    if words and not words[0].startswith("-"):
        if words[0] not in SHIPPED:
            raise UnknownName("launcher", words[0], SHIPPED)
        words = ["--config_file", str(CONFIGS / f"{words[0]}.yaml"), *words[1:]]
    if "--config_file" in words:
        file = Path(words[min(words.index("--config_file") + 1, len(words) - 1)]).expanduser()
        if not file.is_file():
            raise MissingPath("no such accelerate config", value=str(file), fix="check `launcher`")
    return words


def devices_of(launcher: str | None) -> int:
    """Processes that a launcher starts: its --num_processes, else its config's, else one."""
    return 1 if launcher is None else _number("num_processes", launcher_arguments(launcher))


def shared_by(launcher: str | None) -> str | None:
    """The launcher, where it starts several processes on this machine alone: all that it takes to share work out."""
    if launcher is None or devices_of(launcher) == 1 or _number("num_machines", launcher_arguments(launcher)) > 1:
        return None
    return launcher


def command_of(launcher: str, module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """What runs a module in a launcher's processes: (the command, what its environment has besides).

    Several processes on CPUs are started by torchrun: `accelerate launch --cpu --num_processes 2` starts one of them,
    and leaves the others to mpirun.
    """
    words, own = launcher_arguments(launcher), ["-m", module, *arguments]
    count = _number("num_processes", words)
    alone = _number("num_machines", words) == 1 and not any(w.startswith("--mpirun_hostfile") for w in words)
    if count > 1 and alone and {"--cpu", "--use_cpu"} & set(words):
        given = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(_number("num_cpu_threads_per_process", words))}
        run = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        return [sys.executable, "-m", *run, *own], given
    return [sys.executable, "-m", "accelerate.commands.launch", *words, *own], {}


def _number(name: str, words: Sequence[str]) -> int:
    """A whole number above zero that `accelerate launch` is given, as an option or in its config; else one."""
    for i, word in enumerate(words):
        if word.partition("=")[0] == f"--{name}":
            said = word.partition("=")[2] or (words[i + 1] if i + 1 < len(words) else "")
            return int(said) if said.isdecimal() and 0 < len(said) < 6 and int(said) else 1
    if "--config_file" not in words:
        return 1
    file = Path(words[min(words.index("--config_file") + 1, len(words) - 1)])
    value = read_mapping(file, "launcher's settings file").get(name)
    return value if isinstance(value, int) and value > 0 else 1


def launch(job: TuneJob, launcher: str | None = None, progress: Progress | None = None) -> TuneResult:
    """Run a job: in this process, or under `accelerate launch` as a child.

    Args:
        job: What to do.
        launcher: None, or arguments of `accelerate launch`, or the name of a shipped config (ddp, fsdp2, zero2, zero3)
            with or without further arguments, such as `fsdp2 --num_processes 8`.
        progress: Called with (steps done, steps in all) after every optimiser step.

    Of a model with a vision tower the language model alone is trained, as a folder of its own in the job's work folder,
    and put back.
    """
    if is_wrapper(job.model):
        return _inside(job, launcher, progress)
    if launcher is not None and job.method.spreads:
        return run_launched(job, launcher, progress)
    from prunetune.tune.stage import run_job  # torch and the trainers

    return run_job(job, progress)


def _inside(job: TuneJob, launcher: str | None, progress: Progress | None) -> TuneResult:
    from prunetune.models.folders.wrapping import rewrap, unwrap

    work_folder(job.work)
    alone, tuned = job.work / "language", job.work / "language-tuned"
    if not alone.exists():  # else of a start that was ended: a folder is there whole or not at all
        unwrap(job.model, alone)
    remove(tuned)
    result = launch(job.model_copy(update={"model": alone, "out": tuned}), launcher, progress)
    if tuned.is_dir():  # one process of several writes
        rewrap(job.model, tuned, job.out)
    remove(alone)
    remove(tuned)
    return result


def run_launched(job: TuneJob, launcher: str, progress: Progress | None = None) -> TuneResult:
    """Run a job as a child of `accelerate launch` and wait for it.

    Raises:
        TuneError: The child failed; its whole output is in `launch.log` of the job's work folder.
    """
    launcher_arguments(launcher)  # what is wrong with it is told before anything is made
    work_folder(job.work)
    file, log = job.work / "job.json", job.work / "launch.log"
    job.write(file)
    remove(result_path(job))
    command, given = command_of(launcher, "prunetune.tune", str(file))
    environment = {**os.environ, **given, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        ) as child,
    ):
        try:
            for line in child.stdout or ():
                word, *numbers = line.split()
                if word == "step" and len(numbers) == 2 and progress is not None:
                    progress(int(numbers[0]), int(numbers[1]))
        except BaseException:
            end_all(child)
            raise
    if child.returncode or not result_path(job).is_file():
        said = last_words(log.read_text(encoding="utf-8", errors="replace"))
        raise TuneError(
            f"the launched stage failed with status {child.returncode}: {said}",
            value=" ".join(command),
            fix=f"see {log}; the stage goes on from its last checkpoint when it is run again",
        )
    return read_result(result_path(job))


def end_all(child: subprocess.Popen[str]) -> None:
    """Stop the launcher and all that it started, which is one process group: with time to save a checkpoint."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
            while time.monotonic() < deadline:
                child.poll()  # a zombie would keep the group
                os.killpg(child.pid, 0)
                time.sleep(0.05)


GRACE_SECONDS = 60.0
"""For the end of a step and a checkpoint, after which the children are killed."""


def last_words(log: str) -> str:
    """What a child's log ends with: the first line of our own message if there is one, else the last line of all."""
    lines = [line for line in log.splitlines() if line.strip()]
    marked = next((line.removeprefix(MARK) for line in lines if line.startswith(MARK)), None)
    return marked or (lines[-1] if lines else "no output")


MARK = "prunetune: "
"""How a child begins its message about a user's error."""
