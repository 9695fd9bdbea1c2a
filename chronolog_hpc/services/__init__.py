"""The services of a deployment: ChronoVisor, ChronoKeeper, ChronoPlayer, each a process of its own.

`server` is the asyncio side of connections; a role is a class with one method, `answer`. The services are the other
half of the client's protocol and store, so they take names from all over `py_chronolog_client`; that it is ours is
made sure here, once.
"""

from chronolog_hpc.clientlib import check_is_ours

check_is_ours()
