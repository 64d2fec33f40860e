"""A first entry for a model of no known family, from its config and the names and shapes of its tensors.

    made = draft(config, shapes)
    print(made.text())          # Family("toy", gate="mlp.w1", …), then what could not be told

What names and shapes show is filled in; what only the model's code shows (layout, multipliers, order of fused rows) is
listed, so that whoever completes the entry knows where to look.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from prunetune.models.families.family import PRE, Family, QkNorm

Sizes = Mapping[str, tuple[int, ...]]

_IN_LAYER = re.compile(r"(.+)\.(\d+)\.(.+)")
_NORM = re.compile(r"norm|(^|[._])ln(_|\d|$|\.)", re.IGNORECASE)
_MULTIPLIES = re.compile(r"multiplier|scal(e|ing)$|softcap|mup|alpha$")
_DEFAULTS = {f.name: f.default for f in fields(Family)}
_ORDER = (
    "input",
    "operator",
    "pre_attention",
    "attention",
    "post_self_attn",
    "post_attention",
    "pre_feed",
    "pre_mlp",
    "ffn",
    "feed",
)
_LAST = ("post_feed", "post_mlp", "post_ffn")


@dataclass
class Draft:
    """An entry as far as it could be told.

    Attributes:
        model_type: Of the config.
        entry: Fields of `Family` that differ from its defaults.
        told: What was found, a line each.
        unsure: What has to be looked up in the model's code, a line each.
        unknown: Tensors that the entry does not name.
    """

    model_type: str
    entry: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def family(self) -> Family:
        """The entry itself."""
        return Family(self.model_type, **self.entry)

    def source(self) -> str:
        """The entry as it stands in entries.py."""
        lines = [f"    {name}={value!r}," for name, value in self.entry.items()]
        return (
            "\n".join([f'Family(\n    "{self.model_type}",', *lines, ")"]) if lines else f'Family("{self.model_type}")'
        )

    def text(self) -> str:
        """All of it, for a person."""
        parts = [self.source(), _list("could be told", self.told), _list("look up in the model's code", self.unsure)]
        if self.unknown:
            parts.append(
                _list(f"{len(self.unknown)} tensors of a layer or of the model have no place in it", self.unknown[:8])
            )
        return "\n\n".join(p for p in parts if p)


def draft(config: Mapping[str, Any], shapes: Sizes) -> Draft:
    """Draft an entry.

    Args:
        config: A config.json, with its class's defaults where they are known.
        shapes: Tensor name -> shape, of the whole model. Empty: only the config is read.
    """
    made = Draft(str(config.get("model_type") or "unknown"))
    inside, outside = _layers(made, config, shapes)
    if inside:
        taken = _ffn(made, config, inside) | _attention(made, config, inside) | _norms(made, config, inside)
        taken |= _outside(made, config, outside)
        made.unknown = sorted(n for n in (*inside, *outside) if n.rpartition(".")[0] not in taken)
    _keys(made, config)
    made.entry = {name: value for name, value in made.entry.items() if value != _DEFAULTS.get(name)}
    return made


def _layers(made: Draft, config: Mapping[str, Any], shapes: Sizes) -> tuple[dict[str, tuple[int, ...]], Sizes]:
    """({suffix: shape} of the layers, tensors outside of them)."""
    at = {name: found for name in shapes if (found := _IN_LAYER.fullmatch(name))}
    prefixes = Counter(found[1] for found in at.values() if "." not in found[1] or "expert" not in found[1])
    if not prefixes:
        made.unsure.append(
            "no tensor names were there: give a folder with the weights, or a family that transformers has"
        )
        return {}, {}
    prefix = prefixes.most_common(1)[0][0]
    made.entry["layers"] = prefix
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, found in at.items():
        if found[1] == prefix:
            layers.setdefault(int(found[2]), {})[found[3]] = tuple(shapes[name])
    depth = config.get("num_hidden_layers")
    made.told.append(
        f"{len(layers)} layers at {prefix}" + (f"; the config says {depth}" if depth != len(layers) else "")
    )
    kinds = [dict(kind) for kind, _ in Counter(tuple(sorted(one.items())) for one in layers.values()).most_common()]
    inside = kinds[0]
    if len(kinds) > 1:
        told = [kind for kind in kinds if "qkv" in _tried(config, kind)]
        inside = told[0] if told else inside
        made.unsure.append(
            f"layers are of {len(kinds)} kinds, with other tensors or shapes: an entry describes one, and what others "
            "have in place of attention is its `mixer` (mixers.py)"
        )
    if experts := [n for n in inside if "expert" in n or ".router." in n]:
        made.unsure.append(f"a mixture of experts ({experts[0]}): no dense entry serves it")
    return inside, {n: s for n, s in shapes.items() if n not in at or at[n][1] != prefix}


def _tried(config: Mapping[str, Any], inside: Sizes) -> Mapping[str, Any]:
    """What the attention of one kind of layers would say."""
    made = Draft("")
    _attention(made, config, inside)
    return made.entry


def _named(inside: Iterable[str], *shape_of: str) -> set[str]:
    return {n.rpartition(".")[0] for n in inside if n in shape_of}


def _ffn(made: Draft, config: Mapping[str, Any], inside: Sizes) -> set[str]:
    hidden, width = config.get("hidden_size"), config.get("intermediate_size")
    ffn = {n.removesuffix(".weight"): s for n, s in inside.items() if n.endswith(".weight") and len(s) == 2}
    outer = _common(n for n, s in ffn.items() if width in s or (isinstance(width, int) and 2 * width in s))
    ffn = {n: s for n, s in ffn.items() if n.startswith(outer)}
    rows = [n for n, s in ffn.items() if s == (width, hidden)]
    fused = [n for n, s in ffn.items() if s == (2 * int(width or 0), hidden)]
    down = [n for n, s in ffn.items() if s == (hidden, width) and n not in rows[:2]]
    if width == hidden:
        down = [n for n in ffn if re.search(r"down|proj$|w2|fc2|to_h$|out", n)] or down
        rows = [n for n in ffn if n not in down]
    if len(down) != 1 or not (len(rows) in (1, 2) or len(fused) == 1):
        made.unsure.append(
            f"the FFN: no tensors of [{width}, {hidden}] and [{hidden}, {width}] in a layer (gate, up, down)"
        )
        return set()
    made.entry["down"] = down[0]
    if fused:
        made.entry |= {"gate": fused[0], "up": fused[0]}
        made.unsure.append(f"{fused[0]} fuses gate and up: gate must come first")
    elif len(rows) == 1:
        made.entry |= {"gate": "", "up": rows[0]}
    else:
        gates = [n for n in rows if re.search(r"gate|w1$", n)]
        gate = gates[0] if len(gates) == 1 else rows[0]
        made.entry |= {"gate": gate, "up": next(n for n in rows if n != gate)}
        if len(gates) != 1:
            made.unsure.append(f"which of {' and '.join(rows)} is the gate (what the activation function reads)")
    made.told.append(f"FFN: {', '.join((*rows, *fused, *down))}")
    made.entry["mlp_bias"] = _bias(made, config, [*rows, *fused, *down], inside, "mlp_bias")
    return {*rows, *fused, *down}


def _attention(made: Draft, config: Mapping[str, Any], inside: Sizes) -> set[str]:
    hidden, heads = int(config.get("hidden_size") or 0), int(config.get("num_attention_heads") or 0)
    if not heads:
        made.unsure.append("the attention: the config names no num_attention_heads")
        return set()
    groups, width = int(config.get("num_key_value_heads") or heads), int(config.get("head_dim") or hidden // heads)
    q, k = heads * width, groups * width
    gated = 2 * q
    attn = {
        n.removesuffix(".weight"): s for n, s in inside.items() if n.endswith(".weight") and len(s) == 2 and "att" in n
    }
    three = [
        [n for n in attn if re.search(rf"(^|[._])w?{c}(_|$|\.|proj)", n) and attn[n][0] in rows]
        for c, rows in (("q", (q, gated)), ("k", (k,)), ("v", (k,)))
    ]
    apart = all(len(names) == 1 for names in three)
    fused = [] if apart else [n for n, s in attn.items() if s == (q + 2 * k, hidden)]
    out = [n for n, s in attn.items() if s == (hidden, q) and n not in fused and [n] not in three]
    out = [n for n in out if re.search(r"(^|[._])w?o(_|$|ut|proj)|dense|c_proj", n)] or out
    if len(out) != 1 or not (apart or len(fused) == 1):
        made.unsure.append(
            f"the attention: no q, k, v of [{q}, {hidden}] and [{k}, {hidden}] (or one of [{q + 2 * k}, {hidden}])"
        )
        return set()
    qkv = (fused[0],) if fused else tuple(names[0] for names in three)
    made.entry |= {"qkv": qkv, "o": out[0], "query_gate": not fused and attn[qkv[0]][0] == gated != q}
    if fused:
        made.unsure.append(f"{fused[0]} fuses queries, keys and values: in that order, or head by head (qkv_by_head)")
    made.told.append(f"attention: {', '.join((*qkv, out[0]))}")
    made.entry["qkv_bias"] = _bias(made, config, qkv, inside, "qkv_bias")
    made.entry["o_bias"] = _bias(made, config, out, inside, "o_bias")
    if "num_key_value_heads" not in config:
        made.entry["grouped"] = False
    return {*qkv, *out, *_qk_norm(made, inside, width, q, k)}


def _qk_norm(made: Draft, inside: Sizes, width: int, q: int, k: int) -> set[str]:
    weights = {
        n.removesuffix(".weight"): s
        for n, s in inside.items()
        if n.endswith(".weight") and _NORM.search(n) and "att" in n.split(".")[0]
    }
    pair = [[n for n in weights if re.search(rf"\.({c}|{w})", n)] for c, w in (("q", "query"), ("k", "key"))]
    if not all(len(names) == 1 for names in pair):
        return set()
    (query,), (key,) = pair
    size = weights[query]
    per = "head" if size == (width,) else "all" if size == (q,) else "each" if len(size) == 2 else ""
    if not per:
        made.unsure.append(f"{query} has the shape {list(size)}: neither a head's, nor all heads'")
        return set()
    if q == width and per == "head":
        made.unsure.append(f"{query}: one head or all of them (there is one head)")
    made.entry["qk_norm"] = QkNorm(per, (query, key))  # type: ignore[arg-type]  # one of the three
    made.told.append(f"norms of queries and keys, a weight for {'all heads' if per != 'head' else 'one head'}")
    return {query, key}


def _norms(made: Draft, config: Mapping[str, Any], inside: Sizes) -> set[str]:
    hidden = config.get("hidden_size")
    names = [
        n.removesuffix(".weight")
        for n, s in inside.items()
        if n.endswith(".weight") and s == (hidden,) and _NORM.search(n)
    ]
    names = [n for n in names if "." not in n]
    if not names:
        made.unsure.append("norms: no weights of the hidden size in a layer; norms without weights, or of other names")
        made.entry["norms"] = ()
        return set()
    names.sort(key=_place)
    made.entry["norms"] = tuple(names)
    made.entry["norm_bias"] = f"{names[0]}.bias" in inside
    made.entry["post_ffn_norm"] = names[-1].startswith(_LAST)
    if tuple(names) != PRE:
        made.unsure.append(f"the order of the norms {', '.join(names)}: one that follows the FFN must be the last")
    return set(names)


def _place(name: str) -> tuple[int, str]:
    if name.startswith(_LAST):
        return len(_ORDER), name
    return next((i for i, word in enumerate(_ORDER) if name.startswith(word)), len(_ORDER) - 1), name


def _outside(made: Draft, config: Mapping[str, Any], outside: Sizes) -> set[str]:
    vocab, hidden = config.get("vocab_size"), config.get("hidden_size")
    tables = [n.removesuffix(".weight") for n, s in outside.items() if s == (vocab, hidden)]
    heads = [n for n in tables if re.search(r"head|embed_out|output", n)]
    embeddings = [n for n in tables if n not in heads]
    finals = [n.removesuffix(".weight") for n, s in outside.items() if s == (hidden,) and n.endswith(".weight")]
    for key, found, called in (("embedding", embeddings, "embedding"), ("final_norm", finals, "norm before the head")):
        if len(found) == 1:
            made.entry[key] = found[0]
        else:
            made.unsure.append(f"the {called}: {', '.join(found) or 'none of its shape'}")
    if heads:
        made.entry["head"] = heads[0]
        made.entry["head_bias"] = f"{heads[0]}.bias" in outside
    made.told.append(
        f"vocabulary: {', '.join((*embeddings[:1], *heads[:1]))}{'' if heads else ' (tied, or no head in the file)'}"
    )
    return {*embeddings[:1], *heads[:1], *finals[:1]}


def _bias(made: Draft, config: Mapping[str, Any], names: Iterable[str], inside: Sizes, key: str) -> bool | str:
    there = [f"{name}.bias" in inside for name in names]
    if any(there) != all(there):
        made.unsure.append(f"{key}: some of {', '.join(names)} have a bias, others none")
    flags = [k for k, v in config.items() if v is any(there) and re.search(r"bias", k)]
    part = {"mlp_bias": "mlp", "qkv_bias": "att|qkv", "o_bias": "att"}[key]
    fits = [k for k in flags if re.search(part, k)] or [k for k in flags if k == "use_bias"]
    if fits:
        made.unsure.append(f"{key}: {any(there)} here, as `{fits[0]}` of the config says; is it that key that decides?")
        return fits[0]
    return any(there)


def _keys(made: Draft, config: Mapping[str, Any]) -> None:
    depth = config.get("num_hidden_layers")
    lists = tuple(k for k, v in sorted(config.items()) if isinstance(v, list) and len(v) == depth and depth)
    if lists and lists != ("layer_types",):
        made.entry["per_layer_keys"] = lists
    for key, value in config.items():
        if _MULTIPLIES.search(key) and isinstance(value, int | float) and not isinstance(value, bool):
            made.unsure.append(
                f"{key} = {value}: what it multiplies (embedding_scale, residual_scale, logit_scale, logit_divisor)"
            )
        if re.search(r"parallel", key) and isinstance(value, bool):
            made.unsure.append(f"{key} = {value}: whether attention and FFN stand side by side (parallel)")
    if config.get("sliding_window"):
        made.unsure.append(
            "which layers see a window where the config does not say (full_every), and what engines assume (period)"
        )
    made.unsure.append("what the config class fills in where config.json is silent (silent)")


def _common(names: Iterable[str]) -> str:
    """The module that most of these names begin with."""
    first = Counter(name.split(".")[0] + "." for name in names if "." in name and "att" not in name.split(".")[0])
    return first.most_common(1)[0][0] if first else ""


def _list(title: str, lines: Iterable[str]) -> str:
    found = list(dict.fromkeys(lines))
    return "\n".join([f"{title}:", *(f"  {line}" for line in found)]) if found else ""
