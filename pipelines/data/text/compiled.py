"""Whether loops are compiled: numba is optional, and each of them has a NumPy twin."""

from importlib.util import find_spec


def have_numba(asked: bool | None) -> bool:
    """Whether to compile.

    Args:
        asked: Yes or no; None for yes where numba is installed.
    """
    return find_spec("numba") is not None if asked is None else asked
