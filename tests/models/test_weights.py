"""The shipped models: they load without a network, are small, and have model cards."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

import pytest

from tttstream import models

NAMES = sorted(path.parent.name for path in models.WEIGHTS.glob("*/config.json"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is an error."""

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a shipped model must not ask the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_together_they_are_small() -> None:
    assert sum(path.stat().st_size for path in models.WEIGHTS.rglob("*") if path.is_file()) < 20e6


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", NAMES)
def test_each_loads_and_has_a_card(name: str) -> None:
    model = models.load(name)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    text = (models.WEIGHTS / name / "card.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    for heading in ("Model", "Data", "Training", "Figures", "Where it fails"):
        assert f"**{heading}" in text
