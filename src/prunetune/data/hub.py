"""Whether the hub answers: asked before a library that would try again and again for half a minute."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

WAIT_S = 3.0


def is_offline() -> bool:
    """Whether nothing is to be asked of a hub (HF_HUB_OFFLINE), or none answers."""
    said = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")
    return said or not _answers(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


@cache
def _answers(endpoint: str) -> bool:
    """Whether the hub's host takes a connection; behind a proxy it is taken for there."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    parts = urlsplit(endpoint)
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        with socket.create_connection((parts.hostname or "", port), WAIT_S):
            return True
    except (OSError, ValueError):
        return False
