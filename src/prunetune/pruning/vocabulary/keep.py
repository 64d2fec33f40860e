"""Which tokens stay: what texts use, what that is merged from, and what no text can do without."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prunetune.errors import BadCheckpoint, OutOfReach
from prunetune.pruning.vocabulary.tokenizer import BYTES, TokenizerFile

Counts = Mapping[int, int]
"""Token id -> how often a text uses it."""


@dataclass(frozen=True)
class Kept:
    """The tokens that stay.

    Attributes:
        rows: Row of the original's embedding, for every row of the new one.
        tokens: How many of these rows are tokens; the others, at the end, belonged to none in the original either.
        used: Tokens that the texts use, of those that stay.
        lost: Tokens that the texts use, of those that go.
    """

    rows: tuple[int, ...]
    tokens: int
    used: int
    lost: int

    @property
    def rest(self) -> int:
        """Tokens that stay although no text uses them: bytes, special ones, what merging needs, what fills a block."""
        return self.tokens - self.used


def needed(tokenizer: TokenizerFile, also: Collection[int] = ()) -> set[int]:
    """Tokens that stay whatever the texts are: bytes or single characters, the tokenizer's marks, added tokens.

    With byte fallback a character that goes is written in its bytes, so that characters need not stay.

    Args:
        tokenizer: The tokenizer.
        also: Further ids: those that the configs name.
    """
    tokens, named = tokenizer.tokens, {i: t for t, i in tokenizer.tokens.items()}
    found = {tokens[t] for t in tokenizer.added} | {tokens[m] for m in tokenizer.marks if m in tokens}
    if tokenizer.kind == "byte-fallback":
        found |= {tokens[b] for b in BYTES}
    else:
        found |= {i for t, i in tokens.items() if len(t) == 1}
    if unknown := tokenizer.values["model"].get("unk_token"):
        found.add(tokens[unknown])
    found |= {i for i in also if i in named}
    return {tokens[t] for i in found for t in tokenizer.merges.path(named[i])}


def choose(
    tokenizer: TokenizerFile,
    task: Counts,
    guard: Counts | None = None,
    *,
    rows: int,
    align: int = 1,
    keep: int | None = None,
    also: Collection[int] = (),
) -> Kept:
    """Decide which tokens stay.

    All that the texts use; with `keep` the most frequent of the task's, then of the guard's, as far as they go. What a
    block of `align` rows then still has room for are the tokens that were merged first when the tokenizer was trained.
    So every new row is one of the original's, and none is made up.

    Args:
        tokenizer: The tokenizer.
        task: What the task's texts use.
        guard: What other texts use that shall not become longer.
        rows: Rows of the original's embedding.
        align: The new number of rows becomes a multiple of this (or stays as it was).
        keep: The new number of rows is at most this; None: as many as the texts need.
        also: Further ids that stay: those that the configs name.

    Raises:
        OutOfReach: `keep` has no room for what every text needs, or is more than there are.
        BadCheckpoint: A token has no row.
    """
    guard, ids = guard or {}, tokenizer.tokens
    if beyond := [t for t, i in ids.items() if i >= rows]:
        raise BadCheckpoint(
            f"{len(beyond)} tokens of this tokenizer have no row in the embedding, which has {rows:,}",
            value=beyond[:3],
            fix="model.resize_token_embeddings(len(tokenizer)), train, save both",
        )
    taken = set(ids.values())
    bare = sorted({i for i in also if 0 <= i < rows} - taken)  # a padding id, say, for which there is no token
    held = needed(tokenizer, also)
    limit = rows if keep is None else _room(keep, len(held) + len(bare), rows, align)
    wanted = sorted({*task, *guard}, key=lambda i: (-task.get(i, 0), -guard.get(i, 0), i))
    paths = _Paths(tokenizer)
    paths.fill(held, wanted, limit - len(bare))
    size = limit if keep is not None else min(rows, -(-(len(held) + len(bare)) // align) * align)
    paths.fill(held, paths.by_rank(), size - len(bare))
    ordered = sorted(held, key=lambda i: (i not in paths.merged, i))  # those outside the model's vocabulary come last
    spare: Iterator[int] = (i for i in range(rows) if i not in taken and i not in bare)
    padding = [*bare, *(next(spare) for _ in range(size - len(ordered) - len(bare)))]
    used = len(held.intersection(wanted))
    return Kept((*ordered, *padding), len(ordered), used, len(wanted) - used)


def _room(keep: int, least: int, rows: int, align: int) -> int:
    """The rows that `keep` leaves: it rounded down. OutOfReach if that is too few, or more than there are."""
    room = keep if keep == rows else keep // align * align
    if least <= room <= rows:
        return room
    raise OutOfReach(
        "so many tokens cannot be kept" if keep > rows else "bytes, special tokens and their like need more room",
        value=keep,
        valid=f"{-(-least // align) * align:,} to {rows:,} (multiples of {align})",
    )


class _Paths:
    """What each token is merged from, as ids."""

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self._ids, self._merges = tokenizer.tokens, tokenizer.merges
        self._named = {i: t for t, i in tokenizer.tokens.items()}
        self.merged = set(tokenizer.merges.symbols.values())

    def of(self, token: int) -> set[int]:
        return {self._ids[t] for t in self._merges.path(self._named[token])} if token in self._named else set()

    def fill(self, held: set[int], tokens: Iterable[int], limit: int) -> None:
        """Add tokens with what they need to `held`, as long as there is room for them."""
        for token in tokens:
            if len(held) == limit:
                return
            more = self.of(token) - held
            if len(held) + len(more) <= limit:
                held |= more

    def by_rank(self) -> Iterator[int]:
        """Tokens in the order of the merges that make them."""
        for a, b in self._merges.ranks:
            if a + b in self._ids:
                yield self._ids[a + b]
