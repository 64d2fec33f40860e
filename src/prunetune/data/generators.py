"""Generated problems (reasoning-gym), with training and test problems disjoint by construction.

Which side a problem is on is decided by the hash of its question: one question in eight is `test`, for every seed. So
neither another seed nor another size can bring an evaluation question into the training data.
(reasoning-gym seeds problem i with `seed + i`: two neighbouring seeds share nearly all their problems.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from prunetune.errors import DataError, UnknownName

CHUNK = 512
GIVE_UP = 5000  # draws without a new problem
TEST_SHARE = 8  # one question in so many is for tests

Entry = dict[str, Any]
Side = Literal["train", "test"]


def side_of(question: str) -> Side:
    """Which side of the split a question is on; spacing and case do not count."""
    digest = hashlib.sha256(" ".join(question.casefold().split()).encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def gym_entries(name: str, size: int, seed: int, side: Side, options: Mapping[str, Any] | None = None) -> list[Entry]:
    """`size` different reasoning-gym entries of one side.

    The first n entries do not depend on `size`. Each also says under `drawn` how to make it again, for its
    scorer.

    Raises:
        UnknownName: no such reasoning-gym data set.
        DataError: options it does not take, or fewer different problems than asked for.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    last_new = 0
    for drawn, entry in enumerate(_draws(name, seed, options or {})):
        question = str(entry["question"])
        if question not in seen and side_of(question) == side:
            seen.add(question)
            entries.append(entry)
            last_new = drawn
            if len(entries) == size:
                return entries
        if drawn - last_new > GIVE_UP:
            raise DataError(
                f"{name} has only about {len(entries)} different {side} problems with these options",
                value=size,
                fix="ask for fewer, or choose options with more variety",
            )
    raise AssertionError("unreachable: the draws are endless")


def check_generator(name: str) -> None:
    """UnknownName if reasoning-gym has no data set of that name."""
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise UnknownName("reasoning-gym data set", name, DATASETS)


def gym_dataset(name: str, seed: int = 0, size: int = 1, options: Mapping[str, Any] | None = None) -> Any:
    """The reasoning-gym data set object itself, whose `score_answer` is the task's own verifier."""
    import reasoning_gym

    check_generator(name)
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **(options or {}))
    except (TypeError, AssertionError, ValueError) as e:
        raise DataError(
            f"reasoning-gym cannot make {name} with these options ({e})", value=dict(options or {}), fix="see its docs"
        ) from e


def solution_of(entry: Entry) -> str:
    """The worked solution where the data set writes one (gsm_symbolic), else the bare answer after `####`."""
    worked = entry.get("metadata", {}).get("answer_cot")
    if worked:
        return str(worked)
    if entry["answer"] is None:
        raise DataError(
            "this reasoning-gym data set writes no answer, so there is nothing to train on",
            value=entry["drawn"]["dataset"]["name"],
            fix="use it for GRPO or evaluation only",
        )
    return f"#### {entry['answer']}"


def _draws(name: str, seed: int, options: Mapping[str, Any]) -> Iterator[Entry]:
    chunk = 0
    while True:  # a chunk's problems are seeded start, start + 1, …: chunks of different seeds must not touch
        start = (seed * 1_000_003 + chunk) * CHUNK
        dataset: dict[str, Any] = {"name": name, "seed": start, "size": CHUNK, "options": dict(options)}
        for index, entry in enumerate(gym_dataset(**dataset)):
            yield {**entry, "drawn": {"dataset": dataset, "index": index}}
        chunk += 1
