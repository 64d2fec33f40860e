"""Launchers: what a recipe may say, the shipped configs against the installed accelerate, and two real processes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from test_distill import method as distill
from test_grpo import grpo_job, rows
from test_job import SMALL, make_job, place, same, tensors

from prunetune.errors import MissingPath, RecipeError, TuneError, UnknownName
from prunetune.tune import Cpt
from prunetune.tune.job import launch, read_result, result_path, run_job
from prunetune.tune.launch import CONFIGS, MARK, SHIPPED, last_words, launcher_arguments
from tiny import tiny_folder

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


@pytest.mark.slow
def test_two_processes_run_a_whole_stage_of_the_other_methods(place: Path, rows: Path, tmp_path: Path) -> None:
    teacher = tiny_folder(tmp_path / "teacher", seed=5)
    distilled = make_job(place, tmp_path / "distilled", distill(), teacher=teacher, end=32)
    rewarded = grpo_job(place, rows, tmp_path / "rewarded", micro_batch_size=8, samples=16)
    one = run_job(make_job(place, tmp_path / "one", distill(), teacher=teacher, end=32))
    files = []
    for job in (distilled, rewarded):
        files.append(job.work / "job.json")
        job.work.mkdir()
        job.write(files[-1])
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *TWO.split(),
        "-m",
        "prunetune.tune",
        *map(str, files),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    losses = [e["loss"] for e in read_result(result_path(distilled)).log]
    assert losses == pytest.approx([e["loss"] for e in one.log], rel=1e-3)
    two = read_result(result_path(rewarded))
    assert two.steps == 4 and all(e["reward"] is not None for e in two.log)
    assert not same(distilled.model, distilled.out) and not same(rewarded.model, rewarded.out)


def test_a_child_that_fails_says_why(place: Path, tmp_path: Path) -> None:
    job = make_job(place, tmp_path / "out")
    with pytest.raises(TuneError, match="invalid int value: 'two'"):
        launch(job, "--cpu --num_processes two")
    log = job.work / "launch.log"
    log.write_text(f"noise\n{MARK}there is no data\n  fix: more\ntorch: a child failed\n")
    assert last_words(log) == "there is no data"
