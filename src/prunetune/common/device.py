"""Where to compute, and in which numbers: the one place that turns `auto`, `cpu`, `cuda` or `mps` into a device that is
there, and that says what a device does well.

Nothing goes to another device than the one asked for: what a device cannot do (fp64 on an Apple GPU) is chosen here.

Several processes, one a device, can do a piece of work together:

    mine = processes.share(batches)          # every `count`-th, so that long ones are spread evenly
    for batch in mine: total += f(batch)
    total = processes.sum(total)             # the same in all of them

They call the same methods in the same order, each with its own part. The groups are torch.distributed's, as accelerate
sets them up. `ALONE` is one process: every call then gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from prunetune.errors import RecipeError, UnknownName

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda", "mps"]

DEVICES: tuple[Device, ...] = get_args(Device)


def device_of(name: str = "auto") -> Device:
    """The device that a setting means: `auto` is a GPU if torch can use one, else the CPU.

    Raises:
        UnknownName: no such device. RecipeError: this machine has none of this kind.
    """
    import torch

    chosen = next((d for d in DEVICES if d == name), None)
    if chosen is None:
        raise UnknownName("device", name, DEVICES)
    there: dict[Device, bool] = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if chosen == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[chosen]:
        what = "GPU" if name == "cuda" else "Apple GPU"
        valid = ["auto", *(d for d, ok in there.items() if ok)]
        raise RecipeError(f"this machine has no {what} that torch can use", value=name, valid=valid, fix="device: cpu")
    return chosen


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """Memory in all: (of the device, of the host); a container's limit counts. On a CPU they are one."""
    import torch

    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.exists() and limit.read_text(encoding="ascii").strip().isdigit():
            found.append(int(limit.read_text(encoding="ascii")))
    host = min(found)
    return (int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else host), host


def free_device_memory() -> None:
    """Give back what torch keeps for later on a GPU; nothing on a CPU."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


QUICK = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What `torch.cpu.get_capabilities` calls units that multiply bf16 (x86, ARM)."""
LARGE = 1 << 19
"""Elements of a matrix from which on that is worth it: below, a model takes seconds in any dtype."""
WIDE = 4096
"""Beyond this width second moments are summed in fp32, else in fp64 (1.6 GiB at 14336)."""


def cpu_features() -> Mapping[str, object]:
    """What this CPU can do, by torch's names; empty where torch cannot tell (before 2.10)."""
    import torch

    told = getattr(torch.cpu, "get_capabilities", None)
    return told() if told and hasattr(torch.backends.mkldnn, "matmul") else {}


def multiplies_bf16(features: Mapping[str, object] | None = None) -> bool:
    """Whether this CPU (or one with these features) multiplies bf16 natively: several times as fast as fp32."""
    has = cpu_features() if features is None else features
    return any(has.get(name) for name in QUICK)


def walk_dtype(
    device: str, stored: torch.dtype, elements: int = 0, features: Mapping[str, object] | None = None
) -> torch.dtype:
    """In what a model's layers are run to be scored and compensated.

    On a GPU as they are stored. On a CPU in fp32, but large ones that are stored in bf16 as they are, where the CPU
    multiplies bf16 natively; else bf16 is several times slower than fp32.

    Args:
        device: `cpu`, `cuda`, `mps`.
        stored: The dtype of the weights.
        elements: Of an FFN's matrix.
        features: Of the CPU; None: this machine's.
    """
    import torch

    if device != "cpu":
        return stored
    quick = stored == torch.bfloat16 and elements >= LARGE and multiplies_bf16(features)
    return stored if quick else torch.float32


def sum_dtype(width: int, device: str = "cpu") -> torch.dtype:
    """In what second moments are summed and solved: fp64; fp32 where that is too large, or unknown to the device."""
    import torch

    return torch.float32 if width > WIDE or device == "mps" else torch.float64


@contextmanager
def native_products(x: torch.Tensor) -> Iterator[None]:
    """fp32 products inside are of bf16 factors, summed in fp32, if `x` is bf16 on a CPU whose units do that.

    What came from bf16 loses nothing; other factors are rounded to bf16.
    """
    import torch

    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not multiplies_bf16():
        yield
        return
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in its stubs
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """X [.., n] times weight [n, m], in fp32; bf16 by bf16 is rounded to bf16 on a CPU that multiplies it natively."""
    import torch

    if x.dtype == weight.dtype == torch.bfloat16 and x.device.type == "cpu" and multiplies_bf16():
        return (x @ weight).float()
    return x.float() @ weight.float()


def fit_threads(device: str, elements: int) -> None:
    """Let torch compute with one thread where a model's matrices are so small that more only wait for each other.

    The demo model decodes 1.3 times as fast so on two idle cores, and several times where one is busy
    (docs/performance.md). It goes by the model alone, so that a run gives the same numbers however busy the machine is.
    A number that the user has set (`OMP_NUM_THREADS`) stays.

    Args:
        device: `cpu`, `cuda`, `mps`.
        elements: Of an FFN's matrix.
    """
    import torch

    if device == "cpu" and elements < LARGE and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextmanager
def fitting_threads(device: str, elements: int) -> Iterator[None]:
    """`fit_threads` until the end of the block."""
    import torch

    before = torch.get_num_threads()
    fit_threads(device, elements)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SPINS = 10_000
"""Rounds that a thread of GNU OpenMP waits awake for the others, some 30 microseconds; its default is 300,000."""


def choose_waiting(busy: float | None = None, cores: int | None = None) -> None:
    """Whether this process' threads wait for each other awake or asleep. Too late once torch is loaded.

    Awake is 1.7 times as fast on an idle machine (SmolLM2 on two cores) and several times as slow where somebody else
    has a core. Settings of OpenMP that the user has made stay.

    Args:
        busy: Cores that others keep busy; None: as it is now, which takes a tenth of a second.
        cores: Of this machine.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ or "OMP_NUM_THREADS" in os.environ:
        return
    cores = cores or os.cpu_count() or 1
    if cores > 1 and busy is None:
        import psutil

        busy = psutil.cpu_percent(interval=0.1) / 100 * cores
    if busy is not None and busy < 0.5:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    else:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """One of `count` processes that do a piece of work together.

    Attributes:
        rank: Which one, from 0.
        count: How many there are.
        device: Where tensors lie while they are summed.
        group: The process group for Python objects; None: the default one.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    group: Any = None

    def share(self, items: Sequence[T]) -> list[T]:
        """The part of this process."""
        return list(items[self.rank :: self.count])

    def gather(self, value: T) -> list[T]:
        """What each process has, in the order of their ranks; in all of them. Tensors inside must be on the CPU."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def together(self, parts: Sequence[T], whole: int) -> list[T]:
        """All `whole` results in order, from each process's results on its `share`."""
        found = self.gather(list(parts))
        return [found[i % self.count][i // self.count] for i in range(whole)]

    def first(self, value: T) -> T:
        """What the first process has."""
        return self.gather(value if self.rank == 0 else None)[0]  # type: ignore[return-value]  # rank 0 has one

    def each(self, calls: Sequence[Callable[[], T] | None]) -> list[T]:
        """The results of `calls`, in all processes; each process makes its share of them (the others may be None)."""
        return self.together([known() for known in self.share(calls) if known is not None], len(calls))

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor that all processes have; in place where it lies on the device."""
        if self.count == 1:
            return x
        import torch.distributed as dist

        x = x.to(self.device).contiguous()
        dist.all_reduce(x)
        return x

    def sum(self, x: torch.Tensor | float | None) -> Any:
        """The sum of a tensor over the processes; whoever has seen nothing gives a number or None."""
        return self._reduced(x, "SUM")

    def most(self, x: torch.Tensor | float | None) -> Any:
        """The largest of each element, none of which is negative; as `sum`."""
        return self._reduced(x, "MAX")

    def _reduced(self, x: Any, how: str) -> Any:
        if self.count == 1:
            return x
        import torch
        import torch.distributed as dist

        own = (x.shape, x.dtype) if isinstance(x, torch.Tensor) else None
        like = next((found for found in self.gather(own) if found is not None), None)
        if like is None:
            return x
        total = x if isinstance(x, torch.Tensor) else torch.zeros(like[0], dtype=like[1])
        total = total.to(self.device).contiguous()
        dist.all_reduce(total, getattr(dist.ReduceOp, how))
        return total


ALONE = Processes()
"""One process, which does all of it."""
