"""A death at a chosen system call, without a process: from then on none of some calls of `os` is made."""

import contextlib
import itertools
import os
from collections.abc import Iterator

import pytest


class Died(BaseException):
    """Raised in the place of a call."""


@contextlib.contextmanager
def dying(left: int, *names: str) -> Iterator[None]:
    """Let `left` calls of these functions of `os` be made within the block, and leave it at the next one."""
    countdown = itertools.count(left, -1)
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            real = getattr(os, name)

            def call(*arguments: object, real: object = real, **options: object) -> object:
                if next(countdown) <= 0:
                    raise Died
                return real(*arguments, **options)  # type: ignore[operator]

            patch.setattr(os, name, call)
        with contextlib.suppress(Died):
            yield
