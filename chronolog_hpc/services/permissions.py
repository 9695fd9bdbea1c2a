"""Who may do what with a chronicle or a story: names in the attributes with which it was created.

`owner`, `readers` and `writers` are lists of names of the token file, with commas between them; `*` is everybody. What
is not given is as with a file under the usual umask: the owner is who has created it, everybody who has a token may read,
and only the owner may write and destroy. A chronicle's `readers` and `writers` are those of its stories where these name
none of their own, and its owner owns all stories in it. A chronicle without an owner, from before there were owners, is
everybody's.

Attributes never change, so what was allowed once stays so for as long as the story lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from py_chronolog_client.errors import NotAuthorizedError, NotFoundError
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.wire.handshake import SERVICE_NAME

OWNER, READERS, WRITERS = "owner", "readers", "writers"
"""The attributes."""
EVERYBODY = "*"


class Right(Enum):
    """What somebody may do: in words, and the attributes that name who else than the owner may."""

    OWN = "destroy", ()
    READ = "read", (READERS,)
    WRITE = "write to", (WRITERS,)
    SEE = "look into", (READERS, WRITERS)


class Permissions:
    """Knows what the attributes in a catalog allow.

    Thread safety: everything.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def require(self, name: str, right: Right, chronicle: str, story: str = "") -> None:
        """Make sure that somebody may do something with a chronicle, or with one of its stories.

        Raises:
            NotAuthorizedError: he may not.
            NotFoundError: it is not there.
        """
        of_chronicle = self._catalog.chronicle_attributes(chronicle)
        if story:
            of_story = self._catalog.story_attributes(chronicle, story)
            _require_for_story(name, right, of_chronicle, of_story, story)
        else:
            _require(name, right, of_chronicle, f"the chronicle {chronicle!r:.200}")

    def require_acquisition(
        self, name: str, chronicle: str, story: str, attributes: Mapping[str, str]
    ) -> None:
        """Make sure that somebody may write to a story, which he would create with these attributes.

        Raises:
            NotAuthorizedError: he may not, or not create it.
            NotFoundError: there is no such chronicle.
        """
        of_chronicle = self._catalog.chronicle_attributes(chronicle)
        try:
            attributes = self._catalog.story_attributes(chronicle, story)
        except NotFoundError:
            _require(name, Right.WRITE, of_chronicle, f"the chronicle {chronicle!r:.200}")
        _require_for_story(name, Right.WRITE, of_chronicle, attributes, story)


def owned(attributes: Mapping[str, str], creator: str) -> dict[str, str]:
    """Return attributes with an owner: where they name none, who creates it."""
    return {OWNER: creator, **attributes}


def _require_for_story(
    name: str, right: Right, of_chronicle: Mapping[str, str], of_story: Mapping[str, str], story: str
) -> None:
    owners = ",".join(attributes.get(OWNER, EVERYBODY) for attributes in (of_chronicle, of_story))
    _require(name, right, {**of_chronicle, **of_story, OWNER: owners}, f"the story {story!r:.200}")


def _require(name: str, right: Right, attributes: Mapping[str, str], what: str) -> None:
    verb, lists = right.value
    named = {READERS: EVERYBODY, WRITERS: "", OWNER: EVERYBODY, **attributes}
    allowed = {each.strip() for key in (OWNER, *lists) for each in named[key].split(",")}
    if name != SERVICE_NAME and allowed.isdisjoint((name, EVERYBODY)):
        raise NotAuthorizedError(
            f"{name!r:.200} may not {verb} {what}: its owner is {named[OWNER]!r:.200}, its readers are "
            f"{named[READERS]!r:.200}, its writers {named[WRITERS]!r:.200}, as its attributes say, which were given when it "
            "was created"
        )
