"""The same work in several gloo processes: forked, so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from prunetune.common.device import Processes

T = TypeVar("T")
_work: list[Callable[[Processes], Any]] = []


def in_processes(count: int, work: Callable[[Processes], T]) -> list[T]:
    """What `work` gives in each of `count` processes, in the order of their ranks."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _work.append(work)
    try:
        with ProcessPoolExecutor(count, multiprocessing.get_context("fork")) as pool:
            jobs = [pool.submit(_one, rank, count, port) for rank in range(count)]
            return [job.result(timeout=120) for job in jobs]
    finally:
        _work.clear()


def _one(rank: int, count: int, port: int) -> Any:
    torch.set_num_threads(1)
    at = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=at, rank=rank, world_size=count, timeout=timedelta(seconds=100))
    try:
        return _work[0](Processes(rank, count))
    finally:
        dist.destroy_process_group()
