"""Time by shape: the fit against a machine whose times are known."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_model

from prunetune.evaluation.speed import Clock, decode_ms

WHOLE = {"layers": 30, "neurons": 1536, "heads": 3, "query_heads": 3}


def known_ms(shape):
    return 4.0 + shape["layers"] * (0.2 + 3e-4 * shape["neurons"])


def test_the_fit_gives_back_a_machine_that_is_linear():
    shapes = [WHOLE, {**WHOLE, "layers": 15}, {**WHOLE, "neurons": 768}]
    clock = Clock.fitted([(s, known_ms(s)) for s in shapes], ["neurons"])
    for shape in ({**WHOLE, "layers": 20, "neurons": 512}, {**WHOLE, "neurons": 64}):
        assert clock.ms(shape) == pytest.approx(known_ms(shape))


def test_noise_never_makes_a_smaller_model_slower():
    clock = Clock.fitted(
        [(WHOLE, 20.0), ({**WHOLE, "layers": 15}, 12.0), ({**WHOLE, "neurons": 768}, 21.0)], ["neurons"]
    )
    assert clock.ms({**WHOLE, "neurons": 64}) <= clock.ms(WHOLE)


def test_each_shape_is_made_once_and_timed():
    made = []

    def cut(shape):
        made.append(dict(shape))
        return tiny_model("llama", num_hidden_layers=shape["layers"], intermediate_size=shape["neurons"])

    whole = {**WHOLE, "layers": 4, "neurons": 48}
    clock = Clock.timed(whole, {name: whole[name] // 2 for name in ("layers", "neurons")}, cut)
    assert made == [whole, {**whole, "layers": 2}, {**whole, "neurons": 24}]
    assert [shape for shape, _ in clock.points] == made
    assert all(ms > 0 for _, ms in clock.points)


def test_a_deeper_model_takes_longer():
    assert decode_ms(tiny_model("llama", num_hidden_layers=16)) > decode_ms(tiny_model("llama", num_hidden_layers=1))
