"""Generated problems: disjoint sides, prefixes that do not depend on size, entries that can be made again."""

from __future__ import annotations

import pytest

from prunetune.data.generators import gym_dataset, gym_entries, side_of, solution_of
from prunetune.errors import DataError, UnknownName
from prunetune.tasks.verifiers import verify_number


def test_train_and_test_never_share_a_question_whatever_the_seeds() -> None:
    train = {e["question"] for seed in (0, 1) for e in gym_entries("gsm_symbolic", 2000, seed, "train")}
    test = {e["question"] for seed in (0, 1) for e in gym_entries("gsm_symbolic", 500, seed, "test")}
    assert len(train) > 3000 and len(test) > 900
    assert not train & test


def test_spacing_and_case_do_not_move_a_question_to_the_other_side() -> None:
    assert all(side_of(f"  What IS\n{i}?") == side_of(f"what is {i}?") for i in range(50))
    assert {side_of(str(i)) for i in range(50)} == {"train", "test"}


def test_a_larger_size_begins_with_the_smaller_one() -> None:
    assert gym_entries("gsm_symbolic", 40, 3, "train") == gym_entries("gsm_symbolic", 700, 3, "train")[:40]


def test_seeds_differ() -> None:
    first, second = ({e["question"] for e in gym_entries("gsm_symbolic", 300, s, "train")} for s in (0, 1))
    assert len(first & second) < 30


def test_an_entry_can_be_made_again() -> None:
    for name in ("gsm_symbolic", "leg_counting"):
        entry = gym_entries(name, 3, 5, "test")[-1]
        again = gym_dataset(**entry["drawn"]["dataset"])[entry["drawn"]["index"]]
        assert again["question"] == entry["question"]


def test_solutions_end_in_the_marked_answer() -> None:
    worked = gym_entries("gsm_symbolic", 20, 0, "train")
    assert all(verify_number(solution_of(e).splitlines()[-1], f"#### {e['answer']}").correct for e in worked)
    assert sum(len(solution_of(e)) > 60 for e in worked) > 15
    bare = gym_entries("leg_counting", 1, 0, "train")[0]
    assert solution_of(bare) == f"#### {bare['answer']}"


def test_a_data_set_without_answers_is_for_verifiers_only() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        solution_of(gym_entries("graph_color", 1, 0, "train")[0])


def test_errors() -> None:
    with pytest.raises(UnknownName, match="did you mean 'gsm_symbolic'"):
        gym_entries("gsm_symbolik", 1, 0, "train")
    with pytest.raises(DataError, match="cannot make leg_counting"):
        gym_entries("leg_counting", 1, 0, "train", {"no_such_option": 1})
    with pytest.raises(DataError, match="only about"):
        gym_entries("chain_sum", 500, 0, "test", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
