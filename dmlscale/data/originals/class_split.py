"""Which classes are trained on and which are only retrieved, where a dataset does not say: zero-shot, by class."""

from __future__ import annotations

from hashlib import blake2b

from dmlscale.data.errors import DataError
from dmlscale.data.sources import TEST_SPLIT, TRAIN_SPLIT


def split_of_class(class_name: str, train_fraction: float, seed: int) -> str:
    """The split of all samples of a class: "train" or "test".

    A function of the name and the seed alone: more samples, or more classes, move no class to the other side.

    Args:
        class_name: of the sample.
        train_fraction: probability of "train".
        seed: another one deals the classes anew.
    """
    digest = blake2b(f"{seed}/{class_name}".encode(), digest_size=8).digest()
    return TRAIN_SPLIT if int.from_bytes(digest, "little") < train_fraction * 2**64 else TEST_SPLIT


def check_fraction(source: str, train_fraction: float) -> None:
    """Refuse a share of classes that is none.

    Raises:
        DataError: ``train_fraction`` is not within 0..1; names the ``source`` whose option it is.
    """
    if not 0 <= train_fraction <= 1:
        raise DataError(f"{source}: train_fraction={train_fraction}, must be 0 to 1 (share of classes to train on)")
