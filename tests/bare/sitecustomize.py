"""For processes that tests start: clu is not found, so they write no events for TensorBoard.

Writing them imports TensorFlow, three seconds of a process that trains for one.
"""

import sys
from importlib.machinery import PathFinder


class WithoutClu(PathFinder):
    """A finder of modules that does not find clu."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """As PathFinder's."""
        return None if name == "clu" else super().find_spec(name, path, target)


sys.meta_path[:] = [WithoutClu if finder is PathFinder else finder for finder in sys.meta_path]
