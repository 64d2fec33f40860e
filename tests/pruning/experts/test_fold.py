"""Least squares inside experts: the normal equations, never worse on held-out tokens, one patch for every layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruning.experts.test_cut import GONE, WIDTH, E, experts_of, neurons, plan_of
from tests.pruning.test_compensate import CALIBRATION, HELD_OUT, batch
from tests.tiny import MIXTURES, layers_of, tiny_folder, tiny_model
from transformers import PreTrainedModel

import prunetune
from prunetune.common.files import mark
from prunetune.errors import PlanError, UnsupportedModel
from prunetune.models.families import FAMILIES
from prunetune.models.folders import load_model, model_sha
from prunetune.pruning import halfway
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.compensate import Patch, compensate
from prunetune.pruning.experts import fold
from prunetune.pruning.experts.walk import activations, expert_of
from prunetune.pruning.folding.together import together
from prunetune.pruning.halfway import Halfway
from prunetune.pruning.plan import PrunePlan

Calls = list[tuple[torch.Tensor, ...]]
WAYS: dict[str, Any] = {"held_out": HELD_OUT}


def found_of(family: str) -> Any:
    return FAMILIES[family].experts


def name_of(family: str, layer: int) -> str:
    return f"model.layers.{layer}.{found_of(family).down}"


def sent(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> list[Calls]:
    """Of every layer (inputs, chosen, gates) of its experts at real tokens, a batch after another."""
    family = model.config.model_type
    modules = [experts_of(layer, family)[1] for layer in layers_of(model)]
    calls: list[Calls] = [[] for _ in modules]
    hooks = [m.register_forward_pre_hook(lambda _, a, c=c: c.append(a)) for m, c in zip(modules, calls, strict=True)]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    real = [b["attention_mask"].flatten().bool() for b in batches]
    return [[tuple(x[r] for x in call) for call, r in zip(each, real, strict=True)] for each in calls]


def routed(calls: Calls, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, gates) of the tokens that go to an expert."""
    parts = [(x[t], g[t, s]) for x, chosen, g in calls for t, s in [(chosen == expert).nonzero(as_tuple=True)]]
    xs, gates = zip(*parts, strict=True)
    return torch.cat(xs), torch.cat(gates)


def stays(plan: PrunePlan, layer: int, expert: int) -> list[int]:
    return [n % WIDTH for n in plan.kept("neurons", layer) if n // WIDTH == expert]


def masked(model: PreTrainedModel, plan: PrunePlan, tensors: dict[str, torch.Tensor]) -> PreTrainedModel:
    """The whole-width model that computes what one with fewer neurons and these down projections computes."""
    model, family = copy.deepcopy(model), model.config.model_type
    for layer, block in enumerate(layers_of(model)):
        module, patch = experts_of(block, family)[1], tensors.get(name_of(family, layer))
        for expert in range(len(module.down_proj)):
            down, kept = module.down_proj.data[expert], stays(plan, layer, expert)
            gone = [n for n in range(WIDTH) if n not in kept]
            rows = down if found_of(family).transposed else down.T
            rows[gone] = 0
            if patch is not None:
                rows[kept] = patch[expert] if found_of(family).transposed else patch[expert].T
        if (bias := tensors.get(f"{name_of(family, layer)}_bias")) is not None:
            module.down_proj_bias.data.copy_(bias)
    return model


@pytest.mark.parametrize("family", MIXTURES)
def test_an_experts_columns_solve_its_normal_equations(family: str) -> None:
    """Densely in fp64 over the tokens routed to it, each times its gate; with a bias as one more neuron."""
    model, plan, ridge = tiny_model(family), plan_of("neurons"), 0.03
    patch = compensate(
        model, plan, CALIBRATION, held_out=[*CALIBRATION, *HELD_OUT], ridges=(ridge,)
    )  # helps every expert
    calls, module = sent(model, CALIBRATION)[0], experts_of(layers_of(model)[0], family)[1]
    assert patch.fits[0].experts == E
    for expert in (0, 3, 5):
        x, gates = routed(calls, expert)
        a = (activations(module, found_of(family), expert, x).detach() * gates[:, None]).double()
        kept = stays(plan, 0, expert)
        gone = [n for n in range(WIDTH) if n not in kept]
        down = expert_of(module, found_of(family), expert).down.double()
        u = a[:, gone] @ down[:, gone].T
        features = torch.cat([a[:, kept], gates[:, None].double()], 1) if found_of(family).bias else a[:, kept]
        second = features.T @ features / len(x)
        second += ridge * second.diagonal().mean() * torch.eye(len(second))
        change = torch.linalg.solve(second, features.T @ u / len(x)).T
        got = patch.tensors[name_of(family, 0)][expert].double()
        got = got.T if found_of(family).transposed else got
        torch.testing.assert_close(got, down[:, kept] + change[:, : len(kept)], rtol=1e-4, atol=1e-5)
        if found_of(family).bias:
            bias = patch.tensors[f"{name_of(family, 0)}_bias"][expert].double()
            expected = module.down_proj_bias[expert].detach().double() + change[:, -1]
            torch.testing.assert_close(bias, expected, rtol=1e-4, atol=1e-5)


def check_claims(model: PreTrainedModel, plan: PrunePlan, patch: Patch) -> None:
    """Every layer's errors are those of its experts together, on what they are sent in the model that the patch makes."""
    new, plain, family = masked(model, plan, patch.tensors), masked(model, plan, {}), model.config.model_type
    assert [fit.layer for fit in patch.fits] == [0, 1, 2, 3]
    for fit, [call] in zip(patch.fits, sent(new, HELD_OUT), strict=True):
        with torch.no_grad():
            whole, cut, mended = (experts_of(layers_of(m)[fit.layer], family)[1](*call) for m in (model, plain, new))
        energy = whole.square().sum()
        assert fit.before == pytest.approx(float((whole - cut).square().sum() / energy), rel=1e-3, abs=1e-10)
        assert fit.after == pytest.approx(float((whole - mended).square().sum() / energy), rel=1e-3, abs=1e-10)
        assert fit.after <= fit.before


@pytest.mark.parametrize("family", MIXTURES)
def test_held_out_errors_are_what_they_claim_and_never_rise(family: str) -> None:
    model, plan = tiny_model(family), plan_of("neurons")
    patch = compensate(model, plan, CALIBRATION, **WAYS)
    check_claims(model, plan, patch)
    for fit in patch.fits:  # here there is always something to gain
        assert fit.after < fit.before and fit.ridge is not None and 0 < (fit.experts or 0) <= E


@pytest.mark.parametrize("family", MIXTURES)
def test_a_cut_model_with_its_patch_equals_the_masked_one(family: str) -> None:
    model, plan = tiny_model(family), plan_of("neurons")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    patch = compensate(model, plan, CALIBRATION, **WAYS)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the model is left as it is"
    small = apply_in_memory(model, plan, patch.tensors)
    real = HELD_OUT[0]["attention_mask"].bool()
    with torch.no_grad():
        got, expected = (m(**HELD_OUT[0]).logits[real] for m in (small, masked(model, plan, patch.tensors)))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", MIXTURES)
def test_copies_of_neurons_that_stay_leave_no_trace(family: str) -> None:
    model = tiny_model(family)
    half = WIDTH // 2
    gone = tuple(e * WIDTH + n for e in range(E) for n in range(half))
    plan = PrunePlan(
        model_sha="", depth=4, width=WIDTH, drop_neurons=dict.fromkeys(range(4), gone), sizes={"experts": E}
    )
    with torch.no_grad():
        for layer in layers_of(model):
            module, found = experts_of(layer, family)[1], found_of(family)
            for expert in range(E):
                tensors = [module.gate_up_proj[expert], *([module.gate_up_proj_bias[expert]] if found.bias else [])]
                for tensor in tensors:
                    rows = tensor.T if found.transposed and tensor.ndim == 2 else tensor
                    parts = (rows[::2], rows[1::2]) if found.alternating else rows.chunk(2)
                    for part in parts:
                        part[:half] = part[half:]
    many, others = [batch(i) for i in range(4, 10)], [batch(i) for i in range(10, 14)]  # so that all experts get enough
    patch = compensate(model, plan, many, held_out=others, ridges=(1e-7,))
    assert all(fit.after < 1e-5 < fit.before for fit in patch.fits)


@pytest.mark.parametrize("family", MIXTURES)
def test_in_python_it_brings_a_cut_model_nearer_to_the_whole_one(family: str) -> None:
    """On fresh tokens; scored and cut by the error that is left after least squares."""
    model, fresh = tiny_model(family), batch(11)
    plan = prunetune.plan(prunetune.score(model, CALIBRATION, criterion="greedy"), neurons=16)
    patch = prunetune.compensate(model, plan, CALIBRATION)
    with torch.no_grad():
        whole, plain, mended = (
            m(**fresh).logits[fresh["attention_mask"].bool()]
            for m in (model, prunetune.apply(model, plan), prunetune.apply(model, plan, patch))
        )
    assert (whole - mended).square().mean() < 0.95 * (whole - plain).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MIXTURES)
def test_one_patch_serves_memory_and_every_layout(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A file with one tensor an expert, or with one of all, as the family's files are."""
    tiny_model(family).to(dtype).save_pretrained(tmp_path / "m")
    model, plan = load_model(tmp_path / "m"), plan_of("all", model_sha(tmp_path / "m"))
    a, b = (compensate(m, plan, CALIBRATION, **WAYS) for m in (model, tmp_path / "m"))
    assert a.fits == b.fits and a.tensors.keys() == b.tensors.keys() and name_of(family, 0) in a.tensors
    assert all(torch.equal(t, b.tensors[n]) and t.dtype == dtype for n, t in a.tensors.items())
    apply_on_disk(tmp_path / "m", plan, tmp_path / "out", a.tensors)
    ours, disk = apply_in_memory(model, plan, b.tensors).state_dict(), load_model(tmp_path / "out").state_dict()
    assert ours.keys() == disk.keys() and all(torch.equal(ours[k], disk[k]) for k in ours)


def test_a_patch_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "mixtral")
    plan, name = plan_of("neurons", model_sha(folder)), name_of("mixtral", 1)
    for patch in (torch.zeros(E - 1, 32, 32), torch.zeros(E, 32, 31)):
        with pytest.raises(PlanError, match="does not fit the plan"):
            apply_on_disk(folder, plan, tmp_path / "out", {name: patch})
        with pytest.raises(PlanError, match="does not fit the plan"):
            apply_in_memory(load_model(folder), plan, {name: patch})
    with pytest.raises(PlanError, match="does not have"):
        apply_on_disk(folder, plan, tmp_path / "out", {name.replace("down", "gate_up"): torch.zeros(1)})


def test_an_expert_with_few_tokens_is_only_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """With none at all, and with fewer held-out ones than choose a ridge; the others are changed."""
    model, plan = tiny_model("gpt_oss"), plan_of("neurons")
    with torch.no_grad():
        for layer in layers_of(model):
            layer.mlp.router.bias[2] = -1e4
    counts = [len(routed(sent(model, HELD_OUT)[0], e)[0]) for e in range(E)]
    few = sorted(counts)[3]
    monkeypatch.setattr(fold, "FEW", few)
    assert counts[2] == 0 < sorted(counts)[1] < few < max(counts)
    patch = compensate(model, plan, CALIBRATION, **WAYS)
    name, plain = name_of("gpt_oss", 0), apply_in_memory(model, plan).state_dict()
    changed = {e for e in range(E) if not torch.equal(patch.tensors[name][e], plain[name][e])}
    assert changed == {e for e in range(E) if counts[e] >= few}
    assert changed == {
        e for e in range(E) if not torch.equal(patch.tensors[f"{name}_bias"][e], plain[f"{name}_bias"][e])
    }
    assert patch.fits[0].experts == len(changed) < E
    monkeypatch.setattr(fold, "FEW", 10**6)
    none = compensate(model, plan, CALIBRATION, **WAYS)
    assert none.tensors == {}
    assert all(f.ridge is None and f.experts == 0 and f.after == f.before > 0 for f in none.fits)


def test_a_layer_whose_experts_get_better_and_their_sum_worse_is_only_cut() -> None:
    """Two experts that each token passes alike: what one lacks the other lacks with another sign. Each could make up
    for some of it with its own neurons, which differ. The layers behind it are sent what the cut alone gives.
    """
    model = tiny_model("mixtral", num_local_experts=2)
    both = (*range(16), *range(WIDTH, WIDTH + 16))
    with torch.no_grad():
        router, module = experts_of(layers_of(model)[0], "mixtral")
        router.weight.zero_()
        module.gate_up_proj[1].view(2, WIDTH, -1)[:, :16] = module.gate_up_proj[0].view(2, WIDTH, -1)[:, :16]
        module.down_proj[1, :, :16] = -module.down_proj[0, :, :16]
    plan = PrunePlan(
        model_sha="", depth=4, width=WIDTH, drop_neurons=dict.fromkeys(range(4), both), sizes={"experts": 2}
    )
    patch = compensate(model, plan, CALIBRATION, **WAYS)
    first, *others = patch.fits
    assert first.ridge is None and first.experts == 0 and first.after == first.before < 1e-10
    assert patch.tensors.keys() == {name_of("mixtral", i) for i in (1, 2, 3)} and all(f.experts for f in others)
    check_claims(model, plan, patch)


@pytest.mark.parametrize("family", MIXTURES)
def test_where_experts_go_too_the_others_moments_are_those_of_what_they_are_sent_then(family: str) -> None:
    """As if the experts had gone before: a plan of their neurons, for the model without the others."""
    model = tiny_model(family)
    values: dict[str, Any] = {"model_sha": "", "depth": 4, "width": WIDTH}
    both = PrunePlan(
        **values, sizes={"experts": E}, drop={"experts": GONE},
        drop_neurons={i: neurons(i, GONE[i]) for i in range(4)},
    )  # fmt: skip
    without = apply_in_memory(model, PrunePlan(**values, sizes={"experts": E}, drop={"experts": GONE}))
    places = {i: [e for e in range(E) if e not in GONE[i]] for i in range(4)}
    rest = {
        i: tuple(places[i].index(n // WIDTH) * WIDTH + n % WIDTH for n in gone) for i, gone in both.drop_neurons.items()
    }
    then = PrunePlan(**values, sizes={"experts": 4}, drop_neurons=rest)
    one, two = (compensate(m, p, CALIBRATION, **WAYS) for m, p in ((model, both), (without, then)))
    assert one.fits == two.fits and one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(t, two.tensors[n]) for n, t in one.tensors.items())
    ours, theirs = (
        apply_in_memory(m, p, patch.tensors).state_dict() for m, p, patch in ((model, both, one), (without, then, two))
    )
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_experts_alone_need_no_patch_and_the_stream_is_refused() -> None:
    model = tiny_model("olmoe")
    assert compensate(model, plan_of("experts"), CALIBRATION, **WAYS).fits == ()
    auto, layer = (compensate(model, plan_of("all"), CALIBRATION, **WAYS, target=t) for t in ("auto", "layer"))
    assert auto.fits == layer.fits and [f.layer for f in auto.fits] == [0, 2, 3]
    with pytest.raises(UnsupportedModel, match="which of a token's experts"):
        compensate(model, plan_of("all"), CALIBRATION, **WAYS, target="stream")
    of_dense = PrunePlan(model_sha="", depth=4, width=WIDTH, drop_neurons=dict.fromkeys(range(4), (1, 2)))
    for fold_it in (compensate, lambda m, p, *a, **k: together(m, [p], *a, **k, ridges=(1.0,))):
        with pytest.raises(PlanError, match="as if a layer had one FFN"):
            fold_it(model, of_dense, CALIBRATION, **WAYS)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_heads_are_folded_in_a_mixture_as_in_a_dense_model(family: str) -> None:
    model, more = tiny_model(family), {"sizes": {"heads": 2, "query_heads": 2, "experts": E}}
    heads = {"heads": dict.fromkeys(range(4), (1,))}
    alone = PrunePlan(model_sha="", depth=4, width=WIDTH, drop=heads, **more)
    both = alone.model_copy(update={"drop_neurons": {i: neurons(i) for i in range(4)}})
    one, two = (compensate(model, plan, CALIBRATION, **WAYS) for plan in (alone, both))
    assert [f.readout for f in one.fits] == ["self_attn.o_proj"] * 4
    assert [(f.readout, f.experts) for f in two.fits[:2]] == [("self_attn.o_proj", None), ("", E)]
    assert two.fits[0] == one.fits[0] and all(f.after <= f.before for f in two.fits)
    real = HELD_OUT[0]["attention_mask"].bool()
    whole, plain, mended = (
        m(**HELD_OUT[0]).logits[real].detach()
        for m in (model, apply_in_memory(model, both), apply_in_memory(model, both, two.tensors))
    )
    assert (whole - mended).square().mean() < (whole - plain).square().mean()


def test_several_plans_share_a_walk() -> None:
    """The first as `compensate` has it; the others where they see the same: in layer 0."""
    model, plans = tiny_model("qwen3_moe"), [plan_of("neurons"), plan_of("neurons")]
    wide = {i: tuple(n + d for n in neurons(i) for d in (0, 1)) for i in range(4)}
    plans[1] = plans[1].model_copy(update={"drop_neurons": wide})
    assert plans[1].new_width == WIDTH - 32
    found = together(model, plans, CALIBRATION, **WAYS, ridges=(0.01, 0.1, 1.0))
    for place, (plan, tensors) in enumerate(zip(plans, found, strict=True)):
        wanted = compensate(model, plan, CALIBRATION, **WAYS, ridges=(0.01, 0.1, 1.0)).tensors
        assert tensors.keys() == wanted.keys() == {name_of("qwen3_moe", i) for i in range(4)}
        for name in [name_of("qwen3_moe", 0)] if place else wanted:
            torch.testing.assert_close(tensors[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_a_walk_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halfway, "SECONDS", 0.0)
    mark(tmp_path, "run")
    model, plan, at = tiny_model("olmoe"), plan_of("neurons"), tmp_path / ".patch.half"

    def kill(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    straight = compensate(model, plan, CALIBRATION, **WAYS)
    with pytest.raises(KeyboardInterrupt):
        compensate(model, plan, CALIBRATION, **WAYS, progress=kill, halfway=Halfway(at, "key"))
    told: list[int] = []
    again = compensate(
        model, plan, CALIBRATION, **WAYS, progress=lambda d, _: told.append(d), halfway=Halfway(at, "key")
    )
    assert told == [3, 4] and again.fits == straight.fits
    assert all(torch.equal(t, again.tensors[n]) for n, t in straight.tensors.items())
    again.write(tmp_path / "patch.safetensors")
    assert Patch.read(tmp_path / "patch.safetensors").fits == straight.fits
