"""Checkpoints that another number of ranks can read, and of which a half-written one is never chosen.

A checkpoint is a folder ``step_00000100`` with safetensors files, one or more of each rank that wrote it, and
``record.json``, which names them with their digests. The record is written last: without it the folder is no
checkpoint. What is damaged later is found by the digests, and the checkpoint before it taken. Nothing in it is ever
run, whoever made it: no file is a pickle. The run writes it itself rather than through Ray's
``report()``: that is the same with and without Ray, and it says when a checkpoint is complete, where Ray's is only
promised.
"""

from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import latest, list_checkpoints, read_record
from dmlscale.training.checkpoint.integrity import newest_for_all, verify
from dmlscale.training.checkpoint.loading import load
from dmlscale.training.checkpoint.saver import save

__all__ = ["CheckpointError", "latest", "list_checkpoints", "load", "newest_for_all", "read_record", "save", "verify"]
