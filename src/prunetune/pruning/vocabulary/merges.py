"""Byte-pair encoding of one token: everything that merging forms on the way to it.

BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) starts from single symbols and, again and again, merges
the neighbours of the lowest rank, the leftmost first. What must stay so that covered text is cut as before:

1. In a text, no merge reaches over the border of a token that comes out of it. So what happens within the token is
   what happens when the token's text stands alone: the best pair of the whole, where it lies in the token, is the best
   pair of the token. The way to a token is therefore one, in whatever text (`path`).
2. Keep every symbol on that way. Each merge that fired has its two parts and its result among them, so it stays. A
   table with fewer pairs has no other best pair, as long as the best one is among those left. So, merge by merge, the
   same ones fire in the same order.

A token that does not come out of its own text never comes out of merging at all. It may still be put in whole (an
added token, or `ignore_merges`), and then needs nothing besides itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

Pair = tuple[str, str]


@dataclass(frozen=True)
class Merges:
    """A table of merges.

    Attributes:
        ranks: Pair -> rank; the lowest goes first.
        symbols: What a text may start from: the tokens of the vocabulary.
    """

    ranks: Mapping[Pair, int]
    symbols: Mapping[str, int]

    def run(self, text: str) -> tuple[list[str], frozenset[str]]:
        """(the tokens that a text ends as, every symbol that is formed on the way, these included).

        A character that is no symbol stands as it is: nothing merges with it.
        """
        now = list(text)
        formed = set(now)
        while len(now) > 1:
            ranked = [(self.ranks[pair], i) for i, pair in enumerate(itertools.pairwise(now)) if pair in self.ranks]
            if not ranked:
                break
            _, at = min(ranked)
            now[at : at + 2] = [now[at] + now[at + 1]]
            formed.add(now[at])
        return now, frozenset(formed)

    def path(self, token: str) -> frozenset[str]:
        """What must be kept for this token to come out of any text as before: itself, and what it is merged from."""
        end, formed = self.run(token)
        if end != [token] or any(s not in self.symbols for s in formed):
            return frozenset((token,))
        return formed

    def within(self, kept: Mapping[str, int]) -> list[Pair]:
        """The merges whose two parts and result are kept, in their order."""
        ordered = sorted(self.ranks, key=self.ranks.__getitem__)
        return [(a, b) for a, b in ordered if a in kept and b in kept and a + b in kept]
