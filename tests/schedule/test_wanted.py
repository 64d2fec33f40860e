"""What people say and what it means, and which shapes meet it."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_config

from prunetune.errors import OutOfReach
from prunetune.models.cost import Cost, cost_of
from prunetune.models.shape import Shape
from prunetune.schedule.fitting import fits, stored_bytes
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.target import PruneConfig, final_shape
from prunetune.schedule.wanted import bytes_of, read_target, times_of


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.6", 0.6), ("60%", 0.6), ("60 %", 0.6), ("3B", 3_000_000_000), ("500M", 500_000_000), ("1e3", 1000),
     ("300,000", 300_000), ("1,234,567", 1_234_567),
     ("4GB", "4GB"), ("2x", "2x"), ("1.5X", "1.5X"), (" 2 GiB ", "2 GiB")],
)  # fmt: skip
def test_what_is_said_is_read(text, value):
    assert read_target(text) == value


@pytest.mark.parametrize(
    "text", ["", "half", "0", "-1", "150%", "1x", "0.5x", "0GB", "4 gigs", "nan", "inf", "0,6", "1,5B", "12,3"]
)
def test_what_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"target|nothing|faster"):
        read_target(text)


def test_a_decimal_comma_is_told():
    with pytest.raises(ValueError, match=r"a decimal point, not a comma: 0\.6"):
        read_target("0,6")


def test_bytes_and_times():
    assert bytes_of("4GB") == 4 * 10**9
    assert bytes_of("1.5GiB") == 3 * 2**29
    assert bytes_of("500 mb") == 5 * 10**8
    assert bytes_of("3B") is None
    assert times_of("2.5×") == 2.5
    assert times_of("2.5") is None


def test_bytes_are_those_of_the_weights_as_stored_and_of_the_cache():
    config = tiny_config("llama")
    cost = Cost(Shape.of(config), 4)
    at = cost_of(config, shape={"neurons": 24}, dtype_bytes=4)
    exactly = at.weight_bytes + at.kv_bytes(50)
    for limit, met in ((exactly, True), (exactly - 1, False)):
        assert fits(f"{limit / 1000}kB", cost, context=50)({"layers": 4, "neurons": 24}) is met


def test_a_speed_up_is_against_the_whole_model():
    cost = Cost(Shape.of(tiny_config("llama")))
    enough = fits("2x", cost, ms=lambda shape: 1.0 + shape["layers"])
    assert [enough({"layers": n, "neurons": 48}) for n in (4, 2, 1)] == [False, False, True]


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("torch.float16", 2), (None, 2)])
def test_a_weight_has_the_bytes_of_its_type(dtype, size):
    assert stored_bytes({"dtype": dtype}) == size
    assert stored_bytes({"torch_dtype": dtype}) == size


def test_neurons_go_first_and_layers_only_where_they_do_not_reach_it():
    sizes = Sizes.of(tiny_config("llama", dtype="float32"))
    whole = sizes.original * 4
    for share in (0.8, 0.5):
        prune = PruneConfig(target=f"{share * whole / 1000}kB", align=4)
        assert final_shape(prune, sizes) == final_shape(PruneConfig(target=share, align=4), sizes)


def test_bytes_out_of_reach_say_what_is_possible():
    sizes = Sizes.of(tiny_config("llama"))
    with pytest.raises(OutOfReach, match="smaller than neurons and layers alone can reach") as e:
        final_shape(PruneConfig(target="1kB"), sizes)
    assert "kB" in str(e.value)
    with pytest.raises(OutOfReach, match="already fits"):
        final_shape(PruneConfig(target="1GB"), sizes)
