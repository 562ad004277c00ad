"""Endings of file names: they tell samples from other files; what a file really is, only its bytes tell."""

from __future__ import annotations

from dmlscale.data.inputs import InputKind

IMAGE_EXTENSIONS = frozenset(
    ("avif", "bmp", "gif", "jfif", "jp2", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp")
)
ARRAY_EXTENSIONS = frozenset(("npy", "npz"))
AUDIO_EXTENSIONS = frozenset(("wav",))

EXTENSIONS: dict[InputKind, frozenset[str]] = {
    "image": IMAGE_EXTENSIONS,
    "views": IMAGE_EXTENSIONS,
    "array": ARRAY_EXTENSIONS,
    "audio": AUDIO_EXTENSIONS,
}


def extension_of(path: str) -> str:
    """The ending of a file's name in small letters, without the dot: "a/b.JPG" gives "jpg"; "" where it has none."""
    stem, _, extension = path.rpartition("/")[2].rpartition(".")
    return extension.lower() if stem else ""
