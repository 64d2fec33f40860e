"""A model's own chat template: rendered within limits, and its refusals told in its own words.

    text = render(tokenizer, [{"role": "user", "content": "2 + 3?"}], opened=True)

A template is a program that somebody else wrote. It may refuse a role, need a variable, or double a string until the
memory is gone. Whatever it does, the caller gets a text or one RecipeError.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 5.0
"""Processor time that one rendering may take. A usual one takes 50 microseconds."""
MEMORY = 512 << 20
"""Bytes that one rendering may add to the process."""
LONGEST = 2_000_000
"""Characters that a rendering may hold beyond ten times its turns."""
PLAIN = "template: plain asks without it"

Message = dict[str, str]


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    *,
    opened: bool,
    name: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The turns as the tokenizer's chat template writes them.

    Args:
        tokenizer: With its chat template.
        turns: {role, content}, from the first.
        opened: End with the opening of the assistant's next turn.
        name: Which of several named templates. None: the only one, or `default`.
        variables: Further variables of the template, such as `enable_thinking`.

    Raises:
        RecipeError: There is no such template, it refuses the turns, fails, or does not end within the limits.
    """
    from jinja2 import TemplateError

    chosen = find_template(tokenizer, name)
    if _raises_to_a_power(chosen):
        raise _failed(tokenizer, "raises a number to a power, which no clock could end")
    try:
        with _limits():
            text = tokenizer.apply_chat_template(
                list(turns), chat_template=chosen, tokenize=False, add_generation_prompt=opened, **(variables or {})
            )
    except TemplateError as e:
        raise _refused(tokenizer, turns, e) from None
    except MemoryError:
        raise _failed(tokenizer, f"takes more than {MEMORY >> 20} MB for one row") from None
    except TimeoutError:
        raise _failed(tokenizer, f"has not ended after {SECONDS:g} s on one row") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as e:
        raise _failed(tokenizer, f"fails on these turns ({type(e).__name__}: {str(e)[:200]})") from None
    if len(text) > LONGEST + 10 * sum(len(t["content"]) for t in turns):
        raise _failed(tokenizer, f"writes {len(text):,} characters for one row")
    return str(text)


def find_template(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> str:
    """The source of a tokenizer's chat template. RecipeError: it has none, or none of this name."""
    have: Any = tokenizer.chat_template
    if not have:
        raise RecipeError(
            "this tokenizer has no chat template", value="template: chat", fix="use template: plain, or a chat model"
        )
    named = have if isinstance(have, dict) else {"default": have}
    if (name or "default") in named:
        return str(named[name or "default"])
    raise RecipeError(
        "this tokenizer has several chat templates and none is the default"
        if name is None
        else "this tokenizer has no chat template of this name",
        value=name or where_of(tokenizer),
        valid=sorted(named),
        fix=f"name one: prompt: {{template: chat, name: {min(named)}}}; or save it alone as chat_template.jinja",
    )


@lru_cache(maxsize=16)
def _raises_to_a_power(source: str) -> bool:
    """Whether a template has `**` as an operator: one step of the interpreter, however long it takes.

    The lexer alone is asked, since it knows no tags and so none of other libraries. `f(**names)` is no power.
    """
    from jinja2 import Environment, TemplateSyntaxError

    before = ""
    try:
        for _, kind, text in Environment(autoescape=True).lex(source):
            if kind == "operator" and text == "**" and before not in ("(", ","):
                return True
            before = before if kind == "whitespace" else text
    except TemplateSyntaxError:  # told with its line when it is rendered
        return False
    return False


def where_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a message calls a tokenizer's template: the model's folder, or the kind of tokenizer."""
    place = str(tokenizer.name_or_path or type(tokenizer).__name__)
    return f"the chat template of {place}"


def _refused(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], error: Exception) -> RecipeError:
    """The template's own words, and what to do about them."""
    from jinja2 import TemplateSyntaxError, UndefinedError

    words = str(error).strip() or type(error).__name__
    if isinstance(error, TemplateSyntaxError):
        what = f"this chat template is no valid Jinja: {words} (line {error.lineno})"
        return RecipeError(what, value=where_of(tokenizer), fix=f"copy the model's chat template again; {PLAIN}")
    if isinstance(error, UndefinedError):
        what = f"this chat template needs a variable that it is not given: {words}"
        fix = f"give it: prompt: {{template: chat, variables: {{NAME: value}}}}; {PLAIN}"
        if "_token" in words:
            fix = f"add that token to tokenizer_config.json; {PLAIN}"
        return RecipeError(what, value=where_of(tokenizer), fix=fix)
    roles = [t["role"] for t in turns]
    fix = f"mend the rows' turns; {PLAIN}"
    if "system" in words.lower() or len(roles) - roles.count("system") == 1:
        fix = "leave out prompt.system" if "system" in roles else "set prompt.system"
        fix = f"{fix} (and look at the system turns of the rows); {PLAIN}"
    return RecipeError(f"this chat template refuses: {words}", value=where_of(tokenizer), valid=None, fix=fix)


def _failed(tokenizer: PreTrainedTokenizerBase, what: str) -> RecipeError:
    fix = f"copy the model's chat template again; {PLAIN}"
    return RecipeError(f"this chat template {what}", value=where_of(tokenizer), fix=fix)


@contextmanager
def _limits() -> Iterator[None]:
    """Processor time and memory of what runs inside are bounded: TimeoutError, MemoryError."""
    with _memory_limit(), _time_limit():
        yield


@contextmanager
def _memory_limit() -> Iterator[None]:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # only Linux says how much a process has and holds it to a limit
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (min((wanted, *(b for b in before if b != unlimited))), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _time_limit() -> Iterator[None]:
    """By a timer of processor time, which only the main thread can have."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGVTALRM"):
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
