"""Arrow strings as NumPy sees them: bytes and offsets, without a copy."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def text_array(texts: pa.Array | pa.ChunkedArray | Sequence[str]) -> pa.Array:
    """Combine strings into one array of large strings, whose offsets are int64."""
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays(texts.chunks) if texts.num_chunks else pa.array([], pa.string())
    array: Any = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
    return array.cast(pa.large_string())


def utf8_views(array: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """View D large strings (`text_array`).

    Returns:
        The bytes, uint8, and (D + 1,) int64 offsets into them; both read-only.
    """
    _, starts, content = array.buffers()
    if starts is None:
        return np.frombuffer(b"", np.uint8), np.frombuffer(bytes(8), np.int64)
    offsets = np.frombuffer(starts, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(content or b"", dtype=np.uint8)
    # Read-only in every case: numba would compile a second time for writable arrays.
    offsets.setflags(write=False)
    data.setflags(write=False)
    return data, offsets


def hash_keys(texts: pa.Array) -> npt.NDArray[np.uint64]:
    """Hash D short strings.

    Returns:
        (D,) uint64; equal strings have equal keys, and null has the key of the empty string.
    """
    digests = [
        hashlib.blake2b((text or "").encode(), digest_size=8).digest() for text in texts.to_pylist()
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8")
