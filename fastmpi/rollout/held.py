"""Which segments lie in the pool, and where."""

from __future__ import annotations

from fastmpi.rollout.pool import Room
from fastmpi.rollout.segments import Request, Segment


class HeldSegments:
    """Segments in `size` tokens of the pool."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._room = Room(size)
        self.segments: set[Segment] = set()

    def take(self, request: Request) -> bool:
        """Finds room for what is missing of a prompt; False, and nothing taken, without room."""
        missing = [segment for segment in request.segments if segment.start is None]
        for index, segment in enumerate(missing):
            segment.start = self._room.take(segment.room)
            if segment.start is None:
                for taken in missing[:index]:
                    self._free(taken)
                return False
        self.segments.update(missing)
        return True

    def release(self, request: Request) -> bool:
        """A response to `request` ended; says whether a segment was needed by nobody else."""
        freed = False
        for segment in request.segments:
            segment.needed_by -= 1
            if not segment.needed_by:
                self._free(segment)
                self.segments.remove(segment)
                freed = True
        return freed

    def clear(self) -> None:
        """Forgets all segments: they are read again when somebody needs them."""
        for segment in self.segments:
            segment.start = None
        self.segments.clear()
        self._room = Room(self._size)

    def _free(self, segment: Segment) -> None:
        assert segment.start is not None
        self._room.give(segment.start, segment.room)
        segment.start = None
