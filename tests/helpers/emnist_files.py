"""Small files as those of EMNIST are."""

import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, values: np.ndarray) -> None:
    """An IDX file of bytes: its magic number, its sizes and its entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def letters(root: Path, train: int = 124, test: int = 62) -> dict[str, np.ndarray]:
    """Upright images by part; the files hold them on their side, as NIST's do."""
    rng = np.random.default_rng(0)
    upright = {}
    for part, count in (("train", train), ("test", test)):
        upright[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        upright[part][0, 0, 0], upright[part][0, 0, 1] = 255, 0
        raw = root / "EMNIST/raw"
        write_idx(raw / f"emnist-byclass-{part}-images-idx3-ubyte", upright[part].transpose(0, 2, 1))
        write_idx(raw / f"emnist-byclass-{part}-labels-idx1-ubyte", np.arange(count) % 62)
    return upright
