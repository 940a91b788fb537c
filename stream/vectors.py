"""Dense vectors: as arrays, and as bytes in a record."""

import numpy as np
import numpy.typing as npt

NORM_TOLERANCE = 1e-2  # bfloat16 keeps 8 bits

Vector = npt.NDArray[np.float32]


def unpack(vector: bytes) -> Vector:
    """A vector of little-endian float32 as an array, without a copy; raises `ValueError` if it is not one."""
    return np.frombuffer(vector, "<f4")


def pack(vector: Vector) -> bytes:
    """The reverse of `unpack`."""
    return vector.astype("<f4").tobytes()


def has_unit_norm(vectors: Vector) -> npt.NDArray[np.bool_]:
    """Which of the vectors (..., d) are finite and of unit norm, within the precision of bfloat16."""
    norms: npt.NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    return np.abs(norms - 1) < NORM_TOLERANCE  # false for NaN and infinity
