"""Scored layer by layer from disk is scored as in memory: every family, criterion and axis; and one layer is held at a time."""

from __future__ import annotations

import errno
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.test_app import call
from tests.tiny import DENSE, EXTRA, MIXTURES, tiny_folder, tiny_model

from prunetune.errors import NotFinite, NotWritable, RecipeError
from prunetune.models.families import FAMILIES
from prunetune.models.folders import load_model
from prunetune.pruning import ranking
from prunetune.pruning.criteria import CRITERIA
from prunetune.pruning.layerwise import Shelf
from prunetune.pruning.scores import Scores, make_batches, score
from prunetune.pruning.scoring import offload

SEQUENCES = [
    [int(i) for i in torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(n))] for n in (21, 17, 17, 9)
]
FORWARD = [name for name, entry in CRITERIA.items() if entry.needs != "gradients"]


def batches() -> list[dict[str, torch.Tensor]]:
    """Two, the first of them padded."""
    return make_batches(SEQUENCES, 0, max_tokens=64)


def both_ways(folder: Path, **asked: Any) -> Scores:
    """The scores of a folder layer by layer, which are those of the model that is loaded from it."""
    whole, apart = (score(m, batches(), **asked) for m in (load_model(folder), folder))
    assert (whole.tokens, whole.criterion, whole.sizes) == (apart.tokens, apart.criterion, apart.sizes)
    pairs = {name: (getattr(whole, name), getattr(apart, name)) for name in ("neurons", "layers", "layers_max")}
    assert whole.blocks.keys() == apart.blocks.keys()
    pairs |= {name: (whole.blocks[name], apart.blocks[name]) for name in whole.blocks}
    for expected, got in pairs.values():
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    return apart


@pytest.mark.parametrize("family", EXTRA)
def test_every_family(family: str, tmp_path: Path) -> None:
    both_ways(tiny_folder(tmp_path / "m", family))


@pytest.mark.parametrize("criterion", FORWARD)
@pytest.mark.parametrize("family", ["gemma3_text", "phi3"])
def test_every_criterion_and_the_axes_of_heads(family: str, criterion: str, tmp_path: Path) -> None:
    more = ("heads", "query_heads") if CRITERIA[criterion].blocks else ()
    found = both_ways(tiny_folder(tmp_path / "m", family), neuron_criterion=criterion, more=more, seed=3)
    assert set(found.blocks) == set(more)


@pytest.mark.parametrize("criterion", [name for name in FORWARD if CRITERIA[name].blocks])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts(family: str, criterion: str, tmp_path: Path) -> None:
    found = both_ways(tiny_folder(tmp_path / "m", family), neuron_criterion=criterion, more=("experts", "heads"))
    assert set(found.blocks) == {"experts", "heads"}


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.bfloat16), ("gemma2", torch.bfloat16), ("gpt_oss", torch.float16)]
)
def test_the_layers_run_in_the_dtype_that_the_model_has_in_memory(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Several shards; and a config that names another dtype than the weights have, as transformers takes it."""
    model = tiny_model(family).to(dtype)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    both_ways(tmp_path / "m", neuron_criterion="wanda", reduce="max", layers_by="cosine")
    text = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(text.replace(str(dtype).removeprefix("torch."), "float32"))
    both_ways(tmp_path / "m")
    both_ways(tmp_path / "m", neuron_criterion="leverage")


def test_what_goes_backwards_is_refused_before_anything_is_read(tmp_path: Path, capsys: Any) -> None:
    folder = tiny_folder(tmp_path / "m")
    with pytest.raises(RecipeError, match="backwards through the whole model"):
        score(folder, batches(), neuron_criterion="taylor")
    args = ("score", tmp_path / "none", "--data", "demo", "--out", tmp_path / "s", "--criterion", "taylor", "--offload")
    code, _, said = call(capsys, *args)
    assert code == 2 and "taylor" in said and "greedy" in said and "--offload" in said


@pytest.mark.parametrize("criterion", ["contribution", "greedy"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_one_layer_is_held_at_a_time_and_hidden_states_are_on_disk(
    family: str, criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, on_disk = list[weakref.ref[Any]](), list[bool]()
    for module in (offload, ranking):
        real = module.one_layer

        def watched(source: Any, layer: int, real: Any = real) -> Any:
            assert not any(one() for one in held), "the layer before is still there"
            one = real(source, layer)
            held.append(weakref.ref(one.block))
            return one

        monkeypatch.setattr(module, "one_layer", watched)
    put = Shelf.put
    monkeypatch.setattr(Shelf, "put", lambda self, x: on_disk.append(self.place == "disk") or put(self, x))
    score(tiny_folder(tmp_path / "m", family), batches(), neuron_criterion=criterion)
    assert len(held) == 4 and on_disk and all(on_disk)


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, make = tiny_folder(tmp_path / "m"), tempfile.NamedTemporaryFile

    def full(**ways: Any) -> Any:
        file = make(**ways)

        def write(_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        file.write = write
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(NotWritable, match="no space left"):
        score(folder, batches())


@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_put_on_disk_comes_back_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, before = torch.randn(shape).to(dtype), set(Path(tempfile.gettempdir()).glob("prunetune-hidden-*"))
    shelf = Shelf("disk", torch.device("cpu"))
    kept = shelf.put(x.transpose(0, 1))
    assert torch.equal(shelf.take(kept), x.transpose(0, 1))
    assert set(Path(tempfile.gettempdir()).glob("prunetune-hidden-*")) <= before, "the file has gone"


@pytest.mark.parametrize("criterion", ["contribution", "greedy"])
@pytest.mark.parametrize(
    ("name", "place"), [("model.embed_tokens.weight", "embedding"), ("model.layers.2.mlp.up_proj.weight", "layer 2")]
)
def test_weights_that_are_no_numbers_are_named(name: str, place: str, criterion: str, tmp_path: Path) -> None:
    file = tiny_folder(tmp_path / "m") / "model.safetensors"
    tensors = load_file(file)
    tensors[name][:, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(NotFinite, match=place) as said:
        score(tmp_path / "m", batches(), neuron_criterion=criterion)
    assert name.removeprefix("model.layers.2.") in str(said.value)


@pytest.mark.parametrize("criterion", ["contribution", "greedy"])
def test_the_command_scores_the_same(criterion: str, tmp_path: Path, capsys: Any) -> None:
    folder, found = tiny_folder(tmp_path / "m", "qwen3"), []
    for more in ((), ("--offload",)):
        out = tmp_path / f"s{len(more)}"
        args = (folder, "--data", "demo", "--samples", 6, "--max-length", 60, "--criterion", criterion, "--out", out)
        assert call(capsys, "score", *args, "--axis", "heads", *more)[0] == 0
        found.append(Scores.read(out))
    assert found[0].model_sha == found[1].model_sha and found[0].data_sha == found[1].data_sha
    torch.testing.assert_close(found[0].neurons, found[1].neurons, rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0].blocks["heads"], found[1].blocks["heads"], rtol=1e-5, atol=0)


def test_the_command_compensates_the_same(tmp_path: Path, capsys: Any) -> None:
    folder, data = tiny_folder(tmp_path / "m"), ("--data", "demo", "--samples", 6, "--max-length", 60)
    scores, plan = tmp_path / "s", tmp_path / "plan.json"
    assert call(capsys, "score", folder, *data, "--criterion", "magnitude", "--out", scores, "--offload")[0] == 0
    assert call(capsys, "plan", scores, "--neurons", 16, "--out", plan)[0] == 0
    for more in ((), ("--offload",)):
        assert call(capsys, "compensate", plan, folder, *data, "--out", tmp_path / f"p{len(more)}", *more)[0] == 0
    assert (tmp_path / "p0").read_bytes() == (tmp_path / "p1").read_bytes()


def test_the_tests_above_know_every_family() -> None:
    assert {*DENSE, *MIXTURES} == set(FAMILIES) == set(EXTRA)
