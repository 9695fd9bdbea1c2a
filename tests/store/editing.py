"""Small defects, made by editing one function of the package while a test runs."""

from __future__ import annotations

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType
from unittest import mock

PACKAGE = "py_chronolog_client"


@contextlib.contextmanager
def edited(function: FunctionType, old: str, new: str) -> Iterator[None]:
    """Replace lines of a function, wherever the package knows it.

    Args:
        function: of a module or class of the package.
        old: lines that must stand in it exactly once, so that a defect which the code has outgrown is an error.
        new: what stands there meanwhile, indented as if the first of the old lines was not.
    """
    module = sys.modules[function.__module__]
    assert module.__file__ is not None
    text = replace(textwrap.dedent(inspect.getsource(function)), old, new)
    code = compile("from __future__ import annotations\n" + text, module.__file__, "exec")
    made: dict[str, object] = {}
    exec(code, vars(module), made)
    known = list(places(function))
    assert known, f"{function.__qualname__} is nowhere"
    with contextlib.ExitStack() as stack:
        for place, name in known:
            stack.enter_context(mock.patch.object(place, name, made[function.__name__]))
        yield


def replace(text: str, old: str, new: str) -> str:
    """Replace lines, whatever their indentation."""
    lines, wanted = text.splitlines(), [line.strip() for line in old.strip().splitlines()]
    found = [
        start
        for start in range(len(lines))
        if [line.strip() for line in lines[start : start + len(wanted)]] == wanted
    ]
    assert len(found) == 1, f"these lines stand there {len(found)} times:\n{old}\nin:\n{text}"
    first = lines[found[0]]
    margin = first[: len(first) - len(first.lstrip())]
    lines[found[0] : found[0] + len(wanted)] = textwrap.indent(
        textwrap.dedent(new).strip(), margin
    ).splitlines()
    return "\n".join(lines) + "\n"


def places(function: FunctionType) -> Iterator[tuple[ModuleType | type, str]]:
    """Yield every module and class of the package that has the function, also as a class method, and its name there."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    for place in dict.fromkeys([*modules, *classes]):
        for name, value in list(vars(place).items()):
            if function in (value, getattr(value, "__func__", None)):
                yield place, name
