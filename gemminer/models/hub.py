"""The hub of Hugging Face, which may not answer: said at once, where its library asks for half a minute a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from gemminer.core.errors import in_words

SECONDS = 5  # to answer in


def silence() -> str | None:
    """Why the hub does not answer, in words; None where it does, whatever it says."""
    hub: Any = import_module("huggingface_hub")
    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever library it asks with
        return in_words(error)
    return None


@contextlib.contextmanager
def cached_unless_answered() -> Iterator[str | None]:
    """Inside, timm and transformers take what is in the cache and ask for nothing, unless the hub answers.

    Yields what `silence` returns. Without this both ask six times for each file, and wait in between.
    """
    why = silence()
    if why is None:
        yield None
        return
    constants: Any = import_module("huggingface_hub.constants")
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = before
