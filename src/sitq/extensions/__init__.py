"""What can be put around and beside the runs of a worker without a change of sitq."""

from sitq.extensions.base import Around, Beside, Event, EventKind, Extension, Listener, Run

__all__ = ["Around", "Beside", "Event", "EventKind", "Extension", "Listener", "Run"]
