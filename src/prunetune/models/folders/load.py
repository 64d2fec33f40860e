"""A checked model folder into memory: the model by plain transformers, and its tokenizer."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prunetune.common.memory import is_memory, memory_errors
from prunetune.common.progress import Progress, bar
from prunetune.errors import BadCheckpoint, TooLittleMemory
from prunetune.models.families.wrappers import KEY_MAPPING, wrapper_of
from prunetune.models.folders.check import check_loaded, check_weights
from prunetune.models.folders.config import (
    check_id,
    config_values,
    embedding_rows,
    file_values,
    generation_values,
    load_config,
)
from prunetune.models.headers import there

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_rows: WeakKeyDictionary[PreTrainedTokenizerBase, int] = WeakKeyDictionary()
"""Tokenizers that were loaded here -> rows of their model's embedding."""


def load_model(folder: Path, dtype: torch.dtype | str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Load a model folder with plain transformers, in eval mode; of a wrapper its language model alone.

    Raises:
        MissingPath, BadCheckpoint, UnsupportedModel: see `check_weights`. NotFinite: a weight is NaN or infinite.
        TooLittleMemory: it does not fit.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    check_weights(folder)
    wrapper = wrapper_of(file_values(folder))
    inside: dict[str, Any] = {"config": load_config(folder), "key_mapping": KEY_MAPPING} if wrapper else {}
    with memory_errors("load this model", str(folder), "a smaller model, a larger machine, or fewer other programs"):
        try:
            with bar(f"load {folder.name}") as progress, told_to(progress), _no_report(wrapper is not None):
                model, info = auto.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                    output_loading_info=True, **inside,
                )  # fmt: skip
        except (SafetensorError, RuntimeError, OSError) as e:
            if is_memory(e):
                raise
            raise BadCheckpoint(
                f"these weights cannot be read ({str(e).splitlines()[0]})",
                value=str(folder),
                fix="a shard is truncated or missing: copy or download the model again",
            ) from e
        others = {n for n in info["unexpected_keys"] if wrapper and wrapper.is_other(n)}
        check_loaded(folder, model, {**info, "unexpected_keys": set(info["unexpected_keys"]) - others})
        check_finite(model)
        moved: PreTrainedModel = model.to(device)
        moved.eval()
        return moved


@contextmanager
def _no_report(wrapped: bool) -> Iterator[None]:
    """Inside, transformers does not list the tensors of a wrapper's other parts, which are left where they are."""
    from transformers.utils import logging as hf

    before = hf.get_verbosity()
    if wrapped:
        hf.set_verbosity_error()
    try:
        yield
    finally:
        hf.set_verbosity(before)


@contextmanager
def told_to(progress: Progress) -> Iterator[None]:
    """Inside, what transformers would show by tqdm while it loads goes to `progress`: (tensors done, in all)."""
    from transformers.utils import logging as hf

    before = hf.set_tqdm_hook(lambda factory, args, kwargs: _Counter(progress, *args, **kwargs))
    try:
        yield
    finally:
        hf.set_tqdm_hook(before)


class _Counter:
    """Stands in for a tqdm bar: it counts, and shows nothing itself."""

    def __init__(self, progress: Progress, iterable: Iterable[Any] = (), *, total: int | None = None, **_: Any) -> None:
        self.progress, self.iterable, self.done = progress, iterable, 0
        self.total = total if total is not None else len(iterable) if isinstance(iterable, Sized) else 0

    def __iter__(self) -> Iterator[Any]:
        for one in self.iterable:
            yield one
            self.update()

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None  # postfixes, refreshes

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self.done += n
        self.progress(self.done, max(self.done, self.total))


def check_finite(model: PreTrainedModel) -> None:
    """Raise NotFinite, naming the first tensor, if a weight is NaN or infinite: every figure would be one too."""
    from prunetune.models.finite import broken_weights

    bad = [(name, p.detach()) for name, p in model.named_parameters() if not _finite(p.detach())]
    if bad:
        raise broken_weights("one tensor" if len(bad) == 1 else f"{len(bad)} tensors", *bad[0])


def _finite(values: torch.Tensor) -> bool:
    """A sum is not finite if any of its terms is; only then is each looked at (a sum may also overflow)."""
    import torch

    if not values.is_floating_point() or bool(values.sum(dtype=torch.float32).isfinite()):
        return True
    return bool(values.isfinite().all())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, padding on the left.

    Its end token is its own, else the one that the model's configs name. Its padding token is its own, else the end
    token; where there is neither, rows are padded with id 0 under the mask (see `pad_id`).

    Raises:
        BadCheckpoint: there is none, it cannot be read, or a special token's id lies beyond the embedding.
    """
    from transformers import AutoTokenizer

    for name in TOKENIZER_FILES:
        there(folder / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as e:
        # The readers of a dozen formats raise whatever a broken file makes them: it is a fault of the file.
        if is_memory(e):
            raise TooLittleMemory("there is too little memory to read this tokenizer", value=str(folder)) from e
        raise _no_tokenizer(folder, f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:200]}") from e
    if not hasattr(tokenizer, "encode"):
        raise _no_tokenizer(folder, "no tokenizer files")
    tokenizer.padding_side = "left"
    vocab = embedding_rows(config_values(folder))
    generation = generation_values(folder)
    if tokenizer.eos_token_id is None and (end := _named_end(generation, config_values(folder))) is not None:
        check_id("eos_token_id", end, vocab, folder)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        check_id(name, getattr(tokenizer, name, None), vocab, folder)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        _tell_no_end(str(folder))
    if vocab is not None:
        _rows[tokenizer] = vocab
    return tokenizer


def check_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Token ids, unless one is beyond the embedding of the model that the tokenizer was loaded with.

    Such tokens were added without `resize_token_embeddings`; looking one up is an IndexError, on a GPU a dead process.
    """
    rows = _rows.get(tokenizer)
    if rows is not None and ids and (most := max(ids)) >= rows:
        raise BadCheckpoint(
            f"the tokenizer writes token {most}, but the embedding has {rows:,} rows",
            value=tokenizer.convert_ids_to_tokens(most),
            valid=f"0 to {rows - 1}",
            fix="it was added without model.resize_token_embeddings(len(tokenizer)): do that, train, save both",
        )
    return list(ids)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What rows are filled up with, under the mask: the padding token, else id 0, which every embedding has."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def require_end(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raise BadCheckpoint if a tokenizer has no end token, for what cannot do without one."""
    if tokenizer.eos_token_id is None:
        raise BadCheckpoint(
            f"this tokenizer has no end token, so no answer ever ends; {what} cannot do without one",
            value=tokenizer.name_or_path,
            fix="name it: eos_token in tokenizer_config.json, or eos_token_id in generation_config.json",
        )


@lru_cache(maxsize=64)
def _tell_no_end(folder: str) -> None:
    log.warning("%s has no end token: every answer goes to the length limit, and no training row ends", folder)


def _no_tokenizer(folder: Path, why: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"this folder's tokenizer cannot be read ({why})",
        value=str(folder),
        fix="copy the tokenizer files of the original model into the folder",
    )


def _named_end(*configs: Mapping[str, Any]) -> int | None:
    """The end token that generation_config.json or config.json names."""
    for values in configs:
        end = values.get("eos_token_id")
        first = end[0] if isinstance(end, list) and end else end
        if isinstance(first, int) and first >= 0:
            return first
    return None


TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "generation_config.json",
    "kept_tokens.json",
)  # fmt: skip


def copy_files(source: Path, out: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Copy the named files that exist, byte for byte (tokenizer and generation config by default)."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
