"""SQuAD v1.1: exact match and F1 with the official normalisation (Rajpurkar et al. 2016), the paper's Table 5.

The data are in the source's JSON: `{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}`
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from prunetune.data.decode import read_text
from prunetune.errors import DataError
from prunetune.tasks.verifiers import Verdict

PROMPT = "{question}\nAnswer:"
STOP = ("\n",)


def read(path: Path) -> list[tuple[str, str, str]]:
    """(id, question with its context, reference as a JSON list of answers) of every question in a SQuAD file."""
    try:
        articles = json.loads(read_text(path))["data"]
        found = [
            (str(qa["id"]), _question(p["context"], qa["question"]), json.dumps([a["text"] for a in qa["answers"]]))
            for article in articles
            for p in article["paragraphs"]
            for qa in p["qas"]
        ]
        if not found:
            raise KeyError("no question in it")
    except (ValueError, RecursionError, KeyError, TypeError) as e:
        raise DataError(
            f"this is not a SQuAD file ({type(e).__name__}: {e})",
            value=str(path),
            valid='{"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}',
            fix="use the file of the source, such as dev-v1.1.json or xquad.en.json",
        ) from None
    return found


def from_rows(rows: Iterable[dict[str, object]]) -> list[tuple[str, str, str]]:
    """The same from rows of the hub's `rajpurkar/squad`."""
    found = []
    for row in rows:
        answers = row["answers"]
        texts = answers["text"] if isinstance(answers, dict) else [str(answers)]
        found.append((str(row["id"]), _question(str(row["context"]), str(row["question"])), json.dumps(list(texts))))
    return found


def verify(output: str, reference: str) -> Verdict:
    """Exact match as the verdict, F1 as a further score; each the best over the reference answers."""
    answers = json.loads(reference)
    found = output.strip()
    exact = best(exact_match, found, answers)
    return Verdict(exact == 1.0, found, "" if exact else "another text", {"f1": best(f1, found, answers)})


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(found: str, wanted: str) -> float:
    """1.0 if equal after normalisation, else 0.0."""
    return float(normalise(found) == normalise(wanted))


def f1(found: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over normalised words."""
    words, target = normalise(found).split(), normalise(wanted).split()
    same = sum((Counter(words) & Counter(target)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(words), same / len(target)
    return 2 * precision * recall / (precision + recall)


def best(score: Callable[[str, str], float], found: str, answers: list[str]) -> float:
    """The highest score over the reference answers."""
    return max((score(found, a) for a in answers), default=0.0)


def _question(context: str, question: str) -> str:
    return f"Context: {context}\nQuestion: {question}"
