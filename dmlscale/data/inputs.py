"""What the files of a dataset are."""

from __future__ import annotations

from typing import Literal

# image: a picture; views: several pictures of one object; array: .npy or .npz; audio: .wav
InputKind = Literal["image", "views", "array", "audio"]
