"""How many tokens calibration takes, what ends it, and where hidden states lie: sums done by hand."""

from __future__ import annotations

import pytest

from prunetune.models.calibration import enough, place_of, token_bytes

GB = 10**9


def test_a_hundred_fitted_tokens_for_each_kept_neuron() -> None:
    found = enough(mean=150.0, width=760, token_bytes=4608, memory=8 * GB, most=5000)
    assert found.samples == 676 and found.ended == "enough"  # 760 * 100 / 0.75 / 150, rounded up
    assert found.tokens == 676 * 150 and found.a_neuron == pytest.approx(100, abs=0.2)
    assert found.bytes == 676 * 150 * 4608
    assert "676 sequences, about 101,400 tokens: 100 are fitted to" in found.text("host memory")
    assert "the 760 neurons that stay" in found.text("disk") and "on disk" in found.text("disk")


@pytest.mark.parametrize(
    ("memory", "most", "samples", "ended"),
    [(GB // 100, 5000, 14, "memory"), (GB, 40, 40, "data"), (1, 40, 1, "memory")],
)
def test_what_ends_it(memory: int, most: int, samples: int, ended: str) -> None:
    found = enough(mean=150.0, width=760, token_bytes=4608, memory=memory, most=most)
    assert (found.samples, found.ended) == (samples, ended)
    assert f"all that {'score.memory holds' if ended == 'memory' else 'the data spare'}" in found.text("device")


def test_bytes_of_a_token_and_where_they_lie() -> None:
    assert token_bytes(4096, 2, stream=False) == 2 * 4096 * 2  # of the layer in hand and of the one before it
    assert token_bytes(4096, 2, stream=True) == 4 * 4096 * 2
    assert place_of(20 * GB, "cuda", 80 * GB, 100 * GB) == "device"
    assert place_of(21 * GB, "cuda", 80 * GB, 100 * GB) == "host memory"
    assert place_of(51 * GB, "cuda", 80 * GB, 100 * GB) == place_of(51 * GB, "cpu", 100 * GB, 100 * GB) == "disk"
    assert place_of(5 * GB, "cpu", 100 * GB, 100 * GB) == "host memory"


def test_an_expert_sees_its_share_of_the_tokens() -> None:
    """Eight of 128: sixteen times as many sequences for as many tokens of each expert."""
    dense, mixture = (
        enough(mean=150.0, width=768, token_bytes=8192, memory=GB**2, most=GB, share=s) for s in (1, 1 / 16)
    )
    assert mixture.samples == pytest.approx(16 * dense.samples, abs=16)
    assert mixture.a_neuron == pytest.approx(100, abs=0.1) and mixture.a_neuron * 768 == mixture.tokens * 0.75 / 16
    assert "neurons that stay in an expert;" in mixture.text("disk") and "an expert" not in dense.text("disk")
