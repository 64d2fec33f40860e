"""The analytic cost against PyTorch's own counters, for every family, and against the paper's sizes."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tests.tiny import tiny_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from prunetune.errors import UnknownName, UnsupportedModel
from prunetune.models.cost import Cost, cost_of, layer_params, neuron_params, params, state_bytes
from prunetune.models.families import FAMILIES
from prunetune.models.gpus import GPUS, gpu_of
from prunetune.models.shape import Shape

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f: (f, {}) for f in FAMILIES},
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "smollm3-biases": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
    "gemma3-bias": ("gemma3_text", {"attention_bias": True}),
    "qwen2-full": ("qwen2", {"use_sliding_window": False}),
    "lfm2-adjusted": ("lfm2", {"block_auto_adjust_ff_dim": True, "intermediate_size": 70, "block_multiple_of": 16}),
    "multi-query": ("mistral", {"num_key_value_heads": 1, "head_dim": 16}),
}
# Published shapes (their config.json on the hub), for the paper's tables.
LLAMA3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
QWEN25_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA2_9B = {
    "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
TABLE_6 = [9.2, 8.8, 8.4, 7.9, 7.5, 7.0, 6.6, 6.2, 5.8]


def meta_model(config: Any) -> PreTrainedModel:
    if isinstance(config, dict):
        config = CONFIG_MAPPING[config["model_type"]](**config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def meta_params(config: dict[str, Any], **changes: int) -> int:
    return sum(p.numel() for p in meta_model({**config, **changes}).parameters())


# Layers of two kinds: every second one has attention, so two layers are half of a model.
MIXED = [case for case, (family, _) in CASES.items() if FAMILIES[family].mixer]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("resize", [{}, {"layers": 3, "neurons": 29}])
def test_parameters_equal_the_models(case: str, resize: dict[str, int]) -> None:
    family, changes = CASES[case]
    config = tiny_config(family, **changes)
    expected = sum(p.numel() for p in meta_model(config).parameters())
    assert cost_of(config).params == expected
    assert cost_of(config.to_dict()).weight_bytes == 2 * expected
    if case in MIXED and resize:
        resize = {**resize, "layers": 2}
    if family == "gemma3_text" or case in MIXED:
        changes = {**changes, "layer_types": config.layer_types[: resize.get("layers", 4)]}
    elif getattr(config, "layer_types", None):
        changes = {**changes, "layer_types": None}
    width = "moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"
    names = {"layers": "num_hidden_layers", "neurons": width}
    changes = {**changes, **{names[k]: v for k, v in resize.items()}}
    smaller = tiny_config(family, **({**changes, "block_auto_adjust_ff_dim": False} if resize else changes))
    assert cost_of(config, shape=resize).params == sum(p.numel() for p in meta_model(smaller).parameters())


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_affine_in_depth_and_width(case: str) -> None:
    family, changes = CASES[case]
    config = tiny_config(family, **changes)
    if case in MIXED:
        assert params(config) - params(config, depth=2) == 2 * layer_params(config)
    else:
        assert params(config) - params(config, depth=3) == layer_params(config)
    assert layer_params(config, 48) - layer_params(config, 47) == neuron_params(config)
    assert params(config, depth=4, width=40) == params(config) - 4 * 8 * neuron_params(config)


class Counted:
    """PyTorch's count of one question's prefill and decode, with a key-value cache and eager attention."""

    def __init__(self, config: Any, prompt: int, new: int) -> None:
        torch.manual_seed(0)
        eager: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = AutoModelForCausalLM.from_config(config, **eager, dtype=torch.float32).eval()
        ids = torch.randint(3, 100, (1, prompt))
        with torch.no_grad(), FlopCounterMode(display=False) as prefill:
            out = model(ids, use_cache=True, logits_to_keep=1)
        with torch.no_grad(), FlopCounterMode(display=False) as decode:
            for _ in range(new - 1):
                out = model(ids[:, -1:], past_key_values=out.past_key_values, use_cache=True)
        with torch.no_grad(), FlopCounterMode(display=False) as whole:
            model(ids, use_cache=False)
        self.prefill, self.decode, self.whole = (
            c.get_total_flops() - _between_projections(model, c) for c in (prefill, decode, whole)
        )


def _between_projections(model: PreTrainedModel, counted: FlopCounterMode) -> int:
    """What linear attention and convolutions compute beside their projections, which the cost leaves out."""
    mixer, by_module = FAMILIES[model.config.model_type].mixer, counted.get_flop_counts()
    if mixer is None or mixer.attends:
        return 0
    name, found = next(iter(mixer.sizes(model.config.to_dict()))).split(".")[0], 0
    for module, counts in by_module.items():
        if module.endswith(f".{name}"):
            inside = [sum(c.values()) for m, c in by_module.items() if m.startswith(f"{module}.") and "proj" in m]
            found += sum(counts.values()) - sum(inside)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("prompt", "new"), [(6, 2), (40, 10)])
def test_flops_equal_pytorchs_counter(case: str, prompt: int, new: int) -> None:
    """Within 1 %: the counter also sees the products of the rotary embedding. 40 tokens are five sliding windows."""
    family, changes = CASES[case]
    # Wide enough that the rotary embedding's products stay below 1 %.
    config = tiny_config(family, hidden_size=64, num_attention_heads=8, **changes)
    counted, ours = Counted(config, prompt, new), cost_of(config).flops(prompt, new)
    assert ours.prefill == pytest.approx(counted.prefill, rel=0.01)
    assert ours.decode == pytest.approx(counted.decode, rel=0.01)
    assert ours.total == ours.prefill + ours.decode
    assert cost_of(config).forward_flops(prompt) == pytest.approx(counted.whole, rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_bytes_equal_the_caches(family: str) -> None:
    """What the cache holds after 40 tokens; sliding layers keep the window less the token to come."""
    config = tiny_config(family)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        cache = model(torch.randint(3, 100, (1, 40)), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in held_by(layer))
    cost = cost_of(config)
    spare = cost.shape.sliding * 2 * 2 * 8 * 2  # one token a sliding layer: keys and values, 2 heads of 8, bf16
    assert cost.kv_bytes(40) == held + spare
    assert cost.kv_bytes(5) - cost.kv_bytes(0) == 5 * cost.kv_bytes_per_token
    mixer = FAMILIES[family].mixer
    assert (cost.kv_bytes(0) > 0) == (mixer is not None and mixer.attends is None)


def held_by(layer: Any) -> list[torch.Tensor]:
    """Tensors of one layer's cache: keys and values, or the states of what takes the place of attention."""
    if hasattr(layer, "conv_states"):
        return [t for t in (*layer.conv_states.values(), *layer.recurrent_states.values()) if t is not None]
    return [layer.keys, layer.values]


def test_the_papers_sizes() -> None:
    assert round(params(LLAMA3_8B) / 1e9, 2) == 8.03
    assert round(params(LLAMA3_8B, depth=30, width=7336) / 1e9, 2) == 5.01
    assert params(QWEN25_7B, width=8944) / 1e9 == pytest.approx(4.60, abs=0.006)  # 4.605
    # Table 4's cut, of which the paper says 5 B: method, section 6.
    assert round(params(LLAMA3_8B, depth=30, width=9336) / 1e9, 2) == 5.75
    for t, billions in enumerate(TABLE_6):
        assert abs(params(GEMMA2_9B, width=14336 - 1000 * t) / 1e9 - billions) < 0.25


def test_the_papers_sizes_on_the_meta_device() -> None:
    assert meta_params(LLAMA3_8B, num_hidden_layers=30, intermediate_size=7336) == params(LLAMA3_8B, 30, 7336)
    assert meta_params(QWEN25_7B, intermediate_size=8944) == params(QWEN25_7B, width=8944)
    for t, billions in enumerate(TABLE_6):
        width = 14336 - 1000 * t
        count = meta_params(GEMMA2_9B, intermediate_size=width)
        assert count == params(GEMMA2_9B, width=width)
        assert abs(count / 1e9 - billions) < 0.25


def test_sliding_layers_shrink_with_the_depth() -> None:
    shape = Shape.of(tiny_config("gemma2"))
    assert (shape.sliding, shape.window) == (2, 8)
    assert shape.resized({"layers": 2}).sliding == 1
    assert Shape.of(tiny_config("llama")).sliding == 0
    assert Shape.of(tiny_config("qwen2", use_sliding_window=False)).sliding == 0


def test_training_cost() -> None:
    cost = cost_of(LLAMA3_8B)
    assert cost.train_bytes == 16 * cost.params
    # 6 N a token without recomputation, the embedding look-up aside.
    matrices = cost.params - 4096 * 128256
    assert cost.train_flops(1_000_000, length=1) == pytest.approx(6e6 * matrices, rel=0.01)
    assert cost.train_flops(4096, length=1024) == 3 * 4 * cost.forward_flops(1024)  # forward, and twice that backward
    assert cost.train_flops(1000, passes=1) == pytest.approx(cost.train_flops(1000) / 3)
    one, four = cost.train_hours(10**9, "A100-80G"), cost.train_hours(10**9, "A100-80G", gpus=4)
    assert one == pytest.approx(4 * four)
    assert 100 < one < 300
    assert cost.activation_bytes(2000) == 2 * cost.activation_bytes(1000) > 0
    whole = [cost.activation_bytes(1000, checkpointing=c, logits=False) for c in (False, True)]
    assert whole[0] > 5 * whole[1] and cost.activation_bytes(1000) == whole[1] + 8 * 1000 * 128256
    with pytest.raises(UnknownName, match="A100-80G"):
        gpu_of("A100-80GB")
    assert all(memory > 0 and tflops > 0 for memory, tflops in GPUS.values())


@pytest.mark.parametrize(
    ("kind", "bytes_"), [("", 16), ("ddp", 16), ("zero2", 2 + 3.5), ("zero3", 4), ("fsdp2", 4), ("--cpu", 16)]
)
def test_bytes_that_training_holds_for_a_parameter(kind: str, bytes_: float) -> None:
    assert state_bytes(kind, 4) == bytes_
    assert state_bytes(kind, 4, reference=True) - bytes_ == state_bytes(kind, 4, average=True) - bytes_ > 0
    assert state_bytes(kind, 4, lora=True) == state_bytes(kind, 4, lora=True, average=True) <= 4


def test_the_cost_of_training_needs_no_family() -> None:
    """A model of no family of ours (a sliced one) is trained too: the same numbers from its config's names."""
    config = tiny_config("llama")
    known, loose = cost_of(config), Cost(Shape.loose(config))
    assert loose.train_flops(1000, 64) == known.train_flops(1000, 64)
    assert loose.activation_bytes(1000) == known.activation_bytes(1000)


def test_record_and_refusal() -> None:
    record = cost_of(tiny_config("llama")).to_json()
    assert record["weight_bytes"] == 2 * record["params"]
    assert set(record) == {"params", "weight_bytes", "kv_bytes_per_token", "train_bytes"}
    with pytest.raises(UnsupportedModel, match="deepseek_v3"):
        cost_of({"model_type": "deepseek_v3", "n_routed_experts": 8})
    assert isinstance(cost_of(Shape.of(LLAMA3_8B)), Cost)
    assert cost_of(LLAMA3_8B).flops(10, 1).decode == cost_of(LLAMA3_8B).flops(10, 0).decode == 0
    assert math.isclose(cost_of(LLAMA3_8B, dtype_bytes=4).weight_bytes, 2 * cost_of(LLAMA3_8B).weight_bytes)


SHAPES = {"llama": LLAMA3_8B, "qwen2": QWEN25_7B, "gemma2": GEMMA2_9B}
CHANGES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"head_dim": 64},
    {"head_dim": None},
    {"num_key_value_heads": None},
    {"attention_bias": True, "mlp_bias": True},
    {"sliding_window": None},
    {"sliding_window": 512},
    {"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 3},
    {"sliding_window": 512, "use_sliding_window": False},
    {"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"] * 4},
    {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 4},
    {"sliding_window": 512, "sliding_window_pattern": 3},
    {"sliding_window": 512, "use_bidirectional_attention": True},
    {"num_hidden_layers": None},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_bare_config_json_means_what_its_class_makes_of_it(family: str, change: dict[str, Any]) -> None:
    """The config.json of an 8B model is read without its class: as it is, with keys missing, and with odd ones."""
    values = {**QWEN25_7B, "model_type": family, "num_hidden_layers": 8, **change}
    if family == "mistral":
        values.pop("layer_types", None)  # its class warns of them
    if family == "gemma4_text":
        values["hidden_size_per_layer_input"] = 0  # else it is refused
    for missing in ((), ("tie_word_embeddings",), ("num_key_value_heads", "sliding_window")):
        config = {k: v for k, v in values.items() if k not in missing}
        try:
            expected = Shape.of(CONFIG_MAPPING[family](**{k: v for k, v in config.items() if k != "model_type"}))
        except ZeroDivisionError:  # exaone4's own, where neither a window nor kinds are given
            continue
        except (StrictDataclassError, ValueError):  # no value for the class: then none for us
            with pytest.raises(UnsupportedModel, match="cannot read"):
                Shape.of(config)
            continue
        assert Shape.of(config) == expected


@pytest.mark.parametrize("config", SHAPES.values(), ids=list(SHAPES))
def test_nothing_heavy_is_imported(config: dict[str, Any]) -> None:
    """`--help`, `--dry-run` and `inspect` stay quick."""
    code = (
        f"import sys; from prunetune.models.cost import cost_of; cost_of({config!r}); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scoring_by_gradients_holds_no_logits_of_a_whole_batch() -> None:
    """19 GB were taken for 135 M parameters: 4,096 x 49,152 logits in fp32 are 0.8 GB each time they are held."""
    smollm2 = tiny_config("llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152,
                          num_attention_heads=9, num_key_value_heads=3, head_dim=64, tie_word_embeddings=True)  # fmt: skip
    cost = cost_of(smollm2, dtype_bytes=4)
    plain, taylor = (cost.scoring_bytes(4096, gradients=g) for g in (False, True))
    assert cost.weight_bytes < plain < taylor < 2e9
    assert cost.scoring_bytes(8192, gradients=True) < 2 * taylor


@pytest.mark.parametrize("dtype", ["%s%d", "float33", "float32" * 40])
def test_whatever_a_config_class_chokes_on_is_told(dtype: str) -> None:
    """Found by 10,000 fuzzed configs: a type that torch does not have is an AttributeError of the class."""
    values = tiny_config("gemma2").to_dict() | {"head_dim": None}  # which only the class can fill in
    with pytest.raises(UnsupportedModel, match="transformers cannot read this config") as e:
        cost_of({**values, "dtype": dtype})
    assert len(str(e.value)) < 600 and "config.json" in str(e.value.fix)
