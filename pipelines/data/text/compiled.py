"""Whether loops are compiled: numba is optional, and each loop has a NumPy twin."""

from importlib.util import find_spec


def have_numba(wanted: bool | None) -> bool:
    """Whether to compile.

    Args:
        wanted: Yes or no; by default, if numba is installed.
    """
    return find_spec("numba") is not None if wanted is None else wanted
