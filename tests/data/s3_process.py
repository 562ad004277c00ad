"""moto's S3 with objects in it from its first answer on: what a server that comes back after a crash is like.

python -m tests.data.s3_process PORT FOLDER BUCKET PREFIX
"""

from __future__ import annotations

import sys
from pathlib import Path

import boto3
from moto import mock_aws
from moto.server import main


def fill(folder: Path, bucket: str, prefix: str) -> None:
    """Store all files of ``folder`` in this process's S3."""
    mock = mock_aws()
    mock.start()
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder).as_posix()}", Body=path.read_bytes())
    mock.stop(remove_data=False)


if __name__ == "__main__":
    port, folder, bucket, prefix = sys.argv[1:]
    fill(Path(folder), bucket, prefix)
    main(["--host", "127.0.0.1", "--port", port])
