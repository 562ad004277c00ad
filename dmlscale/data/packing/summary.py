"""What a packed dataset holds, as the packer tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlscale.data.layout import DUPLICATES_FILE, REJECTS_FILE
from dmlscale.data.statistics import SplitStatistics


@dataclass(frozen=True)
class PackSummary:
    """What a packed dataset holds."""

    path: Path
    splits: Mapping[str, SplitStatistics]
    num_shards: int
    num_rejects: int
    rejects: Mapping[str, int]  # by reason, the most frequent ones
    num_empty_classes: int  # listed, but all of their samples are rejects
    num_ambiguous_classes: int  # whose samples have different super-classes
    num_duplicates: int
    num_duplicates_across_splits: int
    is_reused: bool  # it was there already

    @classmethod
    def of(cls, path: Path, description: Mapping[str, Any], *, is_reused: bool) -> PackSummary:
        """From what dataset.json says."""
        return cls(
            path=path,
            splits={name: SplitStatistics(**numbers) for name, numbers in description["splits"].items()},
            num_shards=description["num_shards"],
            num_rejects=description["num_rejects"],
            rejects=description["rejects"],
            num_empty_classes=description["num_empty_classes"],
            num_ambiguous_classes=description.get("num_ambiguous_classes", 0),
            num_duplicates=description["num_duplicates"],
            num_duplicates_across_splits=description["num_duplicates_across_splits"],
            is_reused=is_reused,
        )

    @property
    def num_samples(self) -> dict[str, int]:
        """By split."""
        return {name: numbers.num_samples for name, numbers in self.splits.items()}

    @property
    def num_classes(self) -> dict[str, int]:
        """By split; a class may be in several."""
        return {name: numbers.num_classes for name, numbers in self.splits.items()}

    def differences(self, source: object) -> list[str]:
        """Where the counts are not those that the data set's authors tell, if ``source`` has ``official_counts``."""
        lines = []
        for split, official in getattr(source, "official_counts", {}).items():
            packed = (self.num_samples.get(split, 0), self.num_classes.get(split, 0))
            if packed != tuple(official):
                lines.append(
                    f"warning: {split} has {packed[0]:,} samples of {packed[1]:,} classes, officially it has "
                    f"{official[0]:,} of {official[1]:,}: is the download complete?"
                )
        return lines

    def __str__(self) -> str:
        lines = [f"{'found' if self.is_reused else 'packed'} {self.path} ({self.num_shards} shards)"]
        lines += [f"  {name}: {numbers}" for name, numbers in self.splits.items()]
        if self.rejects:
            reasons = "; ".join(f"{count:,} x {reason}" for reason, count in list(self.rejects.items())[:3])
            more = "; and others" if len(self.rejects) > 3 else ""
            lines.append(f"  rejected: {self.num_rejects:,} ({reasons}{more}), all in {REJECTS_FILE}")
        if self.num_empty_classes:
            lines.append(f"  {self.num_empty_classes:,} classes have no sample left")
        if self.num_ambiguous_classes:
            lines.append(
                f"  warning: {self.num_ambiguous_classes:,} classes have samples of different super-classes: that of "
                "the first one listed is taken"
            )
        if self.num_duplicates:
            across = self.num_duplicates_across_splits
            leak = f", {across:,} of them in another split than the first" if across else ""
            lines.append(
                f"  same content as an earlier sample: {self.num_duplicates:,}{leak}, all in {DUPLICATES_FILE}"
            )
        return "\n".join(lines)
