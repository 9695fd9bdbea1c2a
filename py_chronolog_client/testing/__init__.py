"""Tools to test engines, and programs that log.

* `EngineContract`: all behaviour that the contract of `py_chronolog_client.engine.base` asks for, as a pytest
  class. An engine of your own is held to it in a few lines.
* `engine_state_machine`: a hypothesis state machine that compares an engine with a plain list.
* `ToyEngine`: an engine in memory that can be slow, refuse events and lose them.
* `ManualClock`: a clock that stands still until it is set.

`EngineContract` needs pytest, `engine_state_machine` needs pytest and hypothesis; neither is imported
before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from py_chronolog_client.testing.manual_clock import ManualClock
from py_chronolog_client.testing.toy import ToyEngine

if TYPE_CHECKING:
    from py_chronolog_client.testing.contract import EngineContract
    from py_chronolog_client.testing.model import engine_state_machine

__all__ = ["EngineContract", "ManualClock", "ToyEngine", "engine_state_machine"]


def __getattr__(name: str) -> Any:
    if name == "EngineContract":
        from py_chronolog_client.testing.contract import EngineContract

        return EngineContract
    if name == "engine_state_machine":
        from py_chronolog_client.testing.model import engine_state_machine

        return engine_state_machine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
