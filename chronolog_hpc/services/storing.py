"""What keepers and the grapher have in common: a store, a place in the visor's registry, and answers about what they have.

A part of an answer is made when the one before the last has gone to the kernel. So a reader that is slow, or never
reads, costs the memory of two parts, and no thread.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, TypeVar

from chronolog_hpc.services.questions import described, scanned, send_all
from chronolog_hpc.services.registration import Registration
from chronolog_hpc.services.server import Service
from chronolog_hpc.services.session import Body, Session
from chronolog_hpc.services.stories import Stories
from chronolog_hpc.services.tenancy import Tenancy
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.store.format import CHUNK_FORMAT, NEW_FORMAT
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import FULL, Limits
from py_chronolog_client.wire.handshake import Identity
from py_chronolog_client.wire.messages import Message, pack_marks

_QUESTIONS = (messages.TakeSnapshot, messages.ListClients, messages.Scan)
_WRITERS, _READERS = 8, 8

T = TypeVar("T")


class StoreService(Service):
    """A service with events of its own."""

    limits: ClassVar[Limits] = FULL
    is_last: ClassVar[bool]
    """Whether it is the archive, in a store of the format that has chunks."""

    def __init__(self, directory: Path, node: str, visor: Address, identity: Identity) -> None:
        """Open the store, which is made if it is not there.

        Args:
            directory: of the store.
            node: name of the machine.
            visor: where it listens.
            identity: of the services.

        Raises:
            ChronoLogError: the directory cannot be used.
        """
        new_format = CHUNK_FORMAT if self.is_last else NEW_FORMAT
        root = StoreRoot.open(directory, create=True, new_format=new_format)
        self._tenancy = Tenancy(root)
        self._stories = Stories(root, is_last=self.is_last)
        self._node = node
        self._visor = visor
        self._identity = identity
        self._writers = ThreadPoolExecutor(_WRITERS, "chronolog-intake")
        self._readers = ThreadPoolExecutor(_READERS, "chronolog-scan")

    async def started(self, address: Address) -> None:
        self._loop = asyncio.get_running_loop()
        register = messages.Register(self.role, self._node, *address)
        self._registration = Registration(self._visor, self._identity, register, self._drop_when_told)

    async def stopped(self) -> None:
        self._registration.stop()
        self._writers.shutdown()
        self._readers.shutdown(cancel_futures=True)
        self._tenancy.end()

    async def answer(self, session: Session, message: Message, body: Body) -> None:
        """Answer a question; only those of services, because a player asks the visor whether somebody may read."""
        if isinstance(message, _QUESTIONS):
            self.require_service(session, message)
        match message:
            case messages.TakeSnapshot(chronicle, story, uid):
                marks = await self._read(lambda: self._stories.snapshot(chronicle, story, uid))
                await session.send(messages.Marks(pack_marks(marks)))
            case messages.ListClients():
                await send_all(session, described(self._stories, message), self._readers)
            case messages.Scan():
                await send_all(session, scanned(self._stories, message), self._readers)
            case _:
                raise self.unknown(message)

    @abstractmethod
    async def _drop(self, drop: messages.Drop) -> None:
        """Forget what the visor says was destroyed."""

    def _drop_when_told(self, drop: messages.Drop) -> None:
        """Do so in the thread of the registration."""
        asyncio.run_coroutine_threadsafe(self._drop(drop), self._loop).result()

    async def _write(self, action: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._writers, action)

    async def _read(self, action: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._readers, action)
