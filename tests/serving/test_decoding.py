"""Waiting for a decoder ends with the deadline or the client, and nothing is decoded for a client that left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.errors import Expired
from plaudit.core.events import Content
from plaudit.core.ports.runtime import ModelRuntime, ServableModel
from plaudit.serving.engine import decoding
from plaudit.serving.engine.call_context import NO_DEADLINE, CallContext, ClientGone
from plaudit.serving.engine.decoding import Decoder
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.limits import Limits
from plaudit_models.preprocess import decode
from support.builders import tiny_content

IMAGE: dict[str, Content] = {"image": tiny_content()["image"]}
BOTH: dict[str, Content] = {name: tiny_content()[name] for name in ("image", "audio")}


@pytest.fixture
def model(registry: DirectoryRegistry, runtime: ModelRuntime) -> ServableModel:
    return runtime.load(registry.folder(1))


class Held:
    """Decoding that says what it began, and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.decode = decode

    def __call__(self, content: Any, modality: Any, *, name: str, **rest: Any) -> Any:
        self.begun.append(name)
        self.entered.set()
        assert self.go_on.wait(60)
        return self.decode(content, modality, name=name, **rest)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    monkeypatch.setattr(decoding, "decode", held)
    return held


@pytest.fixture
def occupied(held: Held, model: ServableModel, metrics: ServingMetrics) -> Iterator[Decoder]:
    """Decoder whose only slot is taken."""
    decoder = Decoder(Limits(), metrics, max_concurrent=1)
    holder = threading.Thread(target=decoder.decode, args=(IMAGE, model, NO_DEADLINE))
    holder.start()
    assert held.entered.wait(60)
    yield decoder
    held.go_on.set()
    holder.join(60)
    assert not holder.is_alive()
    assert decoder.decode(IMAGE, model, NO_DEADLINE)["image"].shape == (1, 8, 8)  # the slot is free again


def active_until(check: int) -> Callable[[], bool]:
    """Presence of a client that has left at the ``check``-th look."""
    looks = iter(range(1, 1_000_000))
    return lambda: next(looks) < check


def test_waiting_ends_with_the_deadline(occupied: Decoder, held: Held, model: ServableModel) -> None:
    with pytest.raises(Expired):
        occupied.decode(IMAGE, model, CallContext(time.monotonic() + 0.1))
    assert held.begun == ["image"]


def test_waiting_ends_when_the_client_leaves(occupied: Decoder, held: Held, model: ServableModel) -> None:
    with pytest.raises(ClientGone):
        occupied.decode(IMAGE, model, CallContext(is_active=active_until(3)))
    assert held.begun == ["image"]


def test_nothing_is_decoded_after_the_deadline(held: Held, model: ServableModel, metrics: ServingMetrics) -> None:
    held.go_on.set()
    decoder = Decoder(Limits(), metrics, max_concurrent=1)
    with pytest.raises(Expired):
        decoder.decode(tiny_content(), model, CallContext(time.monotonic() - 1.0))
    assert held.begun == []
    decoder.decode(IMAGE, model, NO_DEADLINE)


@pytest.mark.parametrize("look", [2, 3])
def test_the_next_part_is_not_begun_for_a_client_that_left(
    held: Held, model: ServableModel, metrics: ServingMetrics, look: int
) -> None:
    """The first look comes before the wait for the slot, the second after it, the third before the next part."""
    held.go_on.set()
    decoder = Decoder(Limits(), metrics, max_concurrent=1)
    with pytest.raises(ClientGone):
        decoder.decode(BOTH, model, CallContext(is_active=active_until(look)))
    assert held.begun == ["image"][: look - 2]
    assert list(decoder.decode(BOTH, model, NO_DEADLINE)) == ["image", "audio"]  # no slot was lost
