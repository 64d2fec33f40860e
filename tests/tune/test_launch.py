"""Launchers: what a recipe may say, the shipped configs against the installed accelerate, and two real processes."""

from __future__ import annotations

import os
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny import tiny_folder
from tests.tune.fixed_rollouts import run_fixed
from tests.tune.methods.test_distill import method as distill
from tests.tune.methods.test_grpo import grpo_job, rows
from tests.tune.test_job import SMALL, make_job, place, same, tensors

from prunetune.common.outputs import work_folder
from prunetune.errors import MissingPath, RecipeError, TuneError, UnknownName
from prunetune.tune.job import TuneJob, read_result, result_path
from prunetune.tune.launch import CONFIGS, MARK, SHIPPED, command_of, last_words, launch, launcher_arguments
from prunetune.tune.methods import Cpt
from prunetune.tune.stage import run_job

__all__ = ["place", "rows"]
TWO = (
    "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1"
)


def test_what_a_launcher_may_be(tmp_path: Path) -> None:
    assert launcher_arguments("--num_processes 2") == ["--num_processes", "2"]
    assert launcher_arguments("zero2 --num_processes 4")[1:] == [str(CONFIGS / "zero2.yaml"), "--num_processes", "4"]
    with pytest.raises(UnknownName, match="did you mean 'fsdp2'"):
        launcher_arguments("fsdp")
    with pytest.raises(MissingPath, match="accelerate config"):
        launcher_arguments(f"--config_file {tmp_path}/no.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        launcher_arguments("ddp 'x")


def test_two_cpu_processes_are_two() -> None:
    """`accelerate launch --cpu --num_processes 2` alone starts one: what it would test passes, and tests nothing."""
    command, given = command_of(TWO, "prunetune.tune", "job.json")
    assert command[1:] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "prunetune.tune",
        "job.json",
    ]
    assert given == {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command, given = command_of("ddp --num_processes 2", "prunetune.tune", "job.json")
    assert command[2] == "accelerate.commands.launch" and given == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_understood_by_the_installed_accelerate(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_machines == 1 and config.mixed_precision == "bf16"
    known = vars(launch_command_parser().parse_args(["x.py"]))
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for key in [*raw.get("fsdp_config", {}), *raw.get("deepspeed_config", {})]:
        assert key in known, key
    if name == "fsdp2":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, reshard_after_forward=True, state_dict_type="SHARDED_STATE_DICT"
        )
        assert plugin.fsdp_version == 2
    if name.startswith("zero"):
        assert raw["deepspeed_config"]["zero_stage"] == int(name[-1])
        assert "zero_stage" in {f.name for f in fields(DeepSpeedPlugin)}


@pytest.mark.slow
def test_two_processes_train_as_one(place: Path, tmp_path: Path) -> None:
    small = {**SMALL, "micro_batch_size": 2}
    one = run_job(make_job(place, tmp_path / "one", Cpt(**small), end=94))
    seen: list[int] = []
    two = launch(make_job(place, tmp_path / "two", Cpt(**small), end=94), TWO, lambda done, total: seen.append(done))
    assert [e["loss"] for e in two.log] == pytest.approx([e["loss"] for e in one.log], rel=1e-3)
    assert (two.tokens, two.samples, two.steps) == (one.tokens, one.samples, one.steps)
    assert seen == list(range(1, 13))
    a, b = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all((a[k] - b[k]).abs().max() < 1e-3 for k in a)


@pytest.mark.thorough
@pytest.mark.slow
def test_two_processes_train_the_other_methods_as_one(place: Path, rows: Path, tmp_path: Path) -> None:
    """GRPO on fixed rollouts, since two processes draw other random numbers than one.

    Loss (which has KL in it, times beta) and gradient are equal to 1e-6. The *logged* KL is not: TRL takes a mean over
    micro-batches of their means, and two processes make other micro-batches. It is off by up to 3.5 % here.
    """
    teacher = tiny_folder(tmp_path / "teacher", seed=5)
    grpo: dict[str, Any] = {"samples": 32, "beta": 0.2}

    def jobs(name: str) -> list[TuneJob]:
        return [
            make_job(place, tmp_path / f"{name}-distill", distill(), teacher=teacher, end=32),
            grpo_job(place, rows, tmp_path / f"{name}-grpo", micro_batch_size=8, **grpo),
            grpo_job(place, rows, tmp_path / f"{name}-dapo", micro_batch_size=4, loss_type="dapo", **grpo),
        ]

    one = [run_job(jobs("one")[0]), *map(run_fixed, jobs("one")[1:])]
    files = []
    for job in jobs("two"):
        files.append(job.work / "job.json")
        work_folder(job.work)  # as `run_launched` does
        job.write(files[-1])
    script = Path(__file__).with_name("fixed_rollouts.py")
    command, given = command_of(TWO, "tests.tune.fixed_rollouts", *map(str, files))
    path = os.pathsep.join([str(script.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **given, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = [read_result(result_path(job)) for job in jobs("two")]
    for first, second, job in zip(one, two, jobs("two"), strict=True):
        assert (second.steps, second.samples, second.tokens) == (first.steps, first.samples, first.tokens)
        for what in ("loss", "grad_norm", *(("kl", "reward", "accuracy") if job.method.type == "grpo" else ())):
            curve = [e[what] for e in first.log]
            close = pytest.approx(curve, rel=0.05 if what == "kl" else 1e-4, abs=1e-5)
            assert [e[what] for e in second.log] == close, (what, job.out)
        assert not same(job.model, job.out)
    grpo_curve = one[1].log
    assert len({round(e["loss"], 4) for e in grpo_curve}) > 4 and grpo_curve[-1]["kl"] > 0.01, "a curve worth comparing"
    assert 0 < grpo_curve[0]["accuracy"] < 1


@pytest.mark.thorough
@pytest.mark.slow
def test_two_processes_sample_and_reward(place: Path, rows: Path, tmp_path: Path) -> None:
    job = grpo_job(place, rows, tmp_path / "out", micro_batch_size=8, samples=16)
    two = launch(job, TWO)
    assert two.steps == 4 and all(e["reward"] is not None for e in two.log)
    assert two.log[0]["kl"] == pytest.approx(0, abs=1e-5), "the reference is the input in both"
    assert not same(job.model, job.out)


def test_a_child_that_fails_says_why(place: Path, tmp_path: Path) -> None:
    job = make_job(place, tmp_path / "out")
    with pytest.raises(TuneError, match="invalid int value: 'two'"):
        launch(job, "--cpu --num_processes two")
    log = job.work / "launch.log"
    log.write_text(f"noise\n{MARK}there is no data\n  fix: more\ntorch: a child failed\n")
    assert last_words(log.read_text()) == "there is no data"
