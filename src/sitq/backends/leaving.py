"""What a backend may offer beside the contract: to give up what belongs to one event loop."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Leaving(Protocol):
    """A backend that keeps something for each event loop that calls it: connections, for instance."""

    async def leave(self) -> None:
        """Gives up what belongs to the running event loop, which ends after this call.

        Other loops go on using the backend. A loop may also end without this call: the backend
        drops what belonged to it then.
        """
        ...
