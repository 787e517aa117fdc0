"""Matrices that measures are tried on: random ones, and every way of being degenerate."""

import numpy as np

ROWS, COLUMNS = 24, 15


def orthonormal(rng: np.random.Generator, d: int, k: int) -> np.ndarray:
    """Random orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(d, k)))[0]


def with_values(values: np.ndarray, rows: int = ROWS, columns: int = COLUMNS, seed: int = 3) -> np.ndarray:
    """A random matrix with these singular values."""
    rng = np.random.default_rng(seed)
    left, right = orthonormal(rng, rows, len(values)), orthonormal(rng, columns, len(values))
    return ((left * values) @ right.T).astype(np.float32)


def random_matrix(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Gaussian numbers."""
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


MATRICES: dict[str, np.ndarray] = {
    "random": random_matrix(),
    "wide": random_matrix().T.copy(),
    "rank two": with_values(np.array([5.0, 2.0])),
    "repeated": with_values(np.array([3.0] * 4 + [1.0] * 11)),
    "all equal": with_values(np.full(15, 2.0)),
    "decaying": with_values(0.5 ** np.arange(15)),
    "one number": np.eye(ROWS, COLUMNS, dtype=np.float32) * (np.arange(ROWS) == 4)[:, None],
    "constant": np.full((ROWS, COLUMNS), 0.25, np.float32),
    "zero": np.zeros((ROWS, COLUMNS), np.float32),
    "huge": random_matrix(1) * np.float32(1e37),
    "tiny": random_matrix(2) * np.float32(1e-30),
}
