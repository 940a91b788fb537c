"""Dense vectors: as arrays, and encoded in a record."""

import base64

import numpy as np
import numpy.typing as npt

NORM_TOLERANCE = 1e-2  # bfloat16 keeps 8 bits

Vector = npt.NDArray[np.float32]


def unpack(vector: str) -> Vector:
    """Decodes a vector (base64 of little-endian float32); raises `ValueError` if it is not one."""
    return np.frombuffer(base64.b64decode(vector, validate=True), "<f4")


def pack(vector: Vector) -> str:
    """Encodes a vector: the reverse of `unpack`."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def has_unit_norm(vectors: Vector) -> npt.NDArray[np.bool_]:
    """Which of the vectors (..., d) are finite and of unit norm, within the precision of bfloat16."""
    norms: npt.NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    return np.abs(norms - 1) < NORM_TOLERANCE  # false for NaN and infinity
