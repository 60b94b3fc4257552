"""What a backend may offer beside the contract: to give up what belongs to one event loop."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Leaving(Protocol):
    """A backend that keeps something for each event loop, such as connections to a server.

    A worker renews its leases from a loop of its own. That one uses the backend without counting as
    a user of it, and ends while others go on: what belongs to it can only be closed from inside.
    """

    async def leave(self) -> None:
        """Gives up what belongs to the running event loop, within bounded time.

        Called at the end of a loop; no call is under way in it. Other loops are not disturbed, the
        number of users stays as it is, and a later call from this loop works all the same.
        """
        ...
