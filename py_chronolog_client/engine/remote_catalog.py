"""The catalog of a deployment, asked of its ChronoVisor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from py_chronolog_client.engine.connection import ANSWER_S, Connection, Connections, raise_failure
from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.messages import Message, expect


class RemoteCatalog:
    """Chronicles, stories and their attributes.

    Thread safety: everything.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Ask over the connections that `connect` makes."""
        self._connections = Connections(connect)

    def greet(self) -> None:
        """Make sure that the visor is there, and knows who asks."""
        self._connections.greet()

    def create_chronicle(self, chronicle: str, attributes: Mapping[str, str]) -> None:
        """Create a chronicle."""
        self._do(messages.CreateChronicle(chronicle, checked_attributes(attributes)))

    def destroy_chronicle(self, chronicle: str) -> None:
        """Remove a chronicle with its stories."""
        self._do(messages.DestroyChronicle(chronicle))

    def chronicles(self) -> list[str]:
        """Return the names of all chronicles, sorted."""
        return self._names(messages.ListChronicles())

    def chronicle_attributes(self, chronicle: str) -> dict[str, str]:
        """Return the attributes that a chronicle was created with."""
        return self._attributes(messages.ChronicleAttributes(chronicle))

    def destroy_story(self, chronicle: str, story: str) -> None:
        """Remove a story with its events."""
        self._do(messages.DestroyStory(chronicle, story))

    def stories(self, chronicle: str) -> list[str]:
        """Return the names of the stories of a chronicle, sorted."""
        return self._names(messages.ListStories(chronicle))

    def story_attributes(self, chronicle: str, story: str) -> dict[str, str]:
        """Return the attributes that a story was created with."""
        return self._attributes(messages.StoryAttributes(chronicle, story))

    def close(self) -> None:
        """End the idle connections."""
        self._connections.close()

    def _do(self, request: Message) -> None:
        self._connections.ask(request, messages.Done)

    def _attributes(self, request: Message) -> dict[str, str]:
        return self._connections.ask(request, messages.Attributes).attributes

    def _names(self, request: Message) -> list[str]:
        names: list[str] = []
        with self._connections.asking(request) as connection:
            more = True
            while more:
                answer, _ = connection.receive(time.monotonic() + ANSWER_S)
                raise_failure(answer)
                page = expect(answer, messages.Names)
                names += page.names
                more = page.more
        return names


def checked_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return attributes as a message carries them.

    Raises:
        TypeError: they are no map of str to str.
        InvalidArgumentError: one of them is no Unicode text.
    """
    if not isinstance(attributes, Mapping):
        raise TypeError(f"attributes must be a dict of str to str, not {type(attributes).__name__}")
    for text in (text for item in attributes.items() for text in item):
        if not isinstance(text, str):
            raise TypeError(f"attributes must be a dict of str to str, and has {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"an attribute is no Unicode text: {error.reason}") from error
    return dict(attributes)
