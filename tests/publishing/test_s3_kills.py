"""Whatever happens to a publisher, a reader of the channel finds the old release or the new one, and nothing else.

Each publisher is a process that is killed at a random moment; a reader follows the channel all the while and hashes
all that it finds. Then the same release is published again, by somebody who lives.
"""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from tasks.publishing import s3_objects
from tasks.publishing.release import Release, contents
from tasks.recipe.schema import Destination
from tests.publishing import ROOT, files_under, make_release
from tests.publishing.doomed import PART, release_and_move
from tests.publishing.s3_server import BUCKET, S3Server

KILLS = 20
FIRST = 5  # number of the first release that is killed: it and all later ones take the same steps
SEED = 5

Read = Callable[[str], bytes]  # by path below the destination


def numbered(folder: Path, number: int, size: int) -> Release:
    """A release with weights of its own and a tokenizer that all of them share."""
    draw = random.Random(number)
    files = {
        "adapter_config.json": b'{"r": 8}\n',
        "model.safetensors": draw.randbytes(size),
        "tokenizer.json": random.Random("tokenizer").randbytes(size),
    }
    return make_release(folder / str(number), files, number=number)


def follow(read: Read) -> int:
    """The number of the release that the channel leads to; AssertionError unless it is there to the last byte."""
    pointer = json.loads(read("capitals/channels/stable.json"))
    for slug in pointer["releases"].values():
        manifest = json.loads(read(f"capitals/{slug}/tunefleet.json"))
        for path, entry in manifest["files"].items():
            assert sha256(read(f"capitals/{slug}/{path}")).hexdigest() == entry["sha256"], f"{slug}/{path}"
    return int(pointer["number"])


@contextmanager
def reading(read: Read) -> Iterator[Callable[[int], None]]:
    """Follow the channel all the while; what was wrong is raised at the end, also a release that came back."""
    found: list[int] = []
    wrong: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set() and not wrong:
            try:
                found.append(follow(read))
                time.sleep(0.02)  # leave something of the processor to the publishers
            except BaseException as error:  # noqa: BLE001 - told to the test, which is in another thread
                wrong.append(error)

    thread = threading.Thread(target=look)
    thread.start()

    def seen(number: int) -> None:
        """Wait until the reader came by, so that it looked between any two releases."""
        while found[-1:] != [number] and thread.is_alive():
            time.sleep(0.01)

    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    assert not wrong, wrong
    assert found == sorted(found)


@contextmanager
def doomed_publishers(place: Destination) -> Iterator[Callable[..., tuple[int, int | None]]]:
    """A function that publishes in a process, which is killed at a step, and returns its exit code and steps."""
    command = [sys.executable, "-m", "tests.publishing.doomed", place.model_dump_json()]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin and parent.stdout

        def publish(release: Release, step: int, delay: float = 0) -> tuple[int, int | None]:
            print(json.dumps([str(release.folder), release.number, step, delay]), file=parent.stdin, flush=True)
            code, steps = json.loads(parent.stdout.readline())
            return code, steps

        yield publish
        parent.stdin.close()


def kill_and_publish_again(
    place: Destination, read: Read, keys: Callable[[], set[str]], artifacts: Path, *, size: int, seconds: float
) -> None:
    """`keys` are all files that readers see; a kill comes up to `seconds` after the step that it waits for."""
    draw = random.Random(SEED)
    expected = {"capitals/channels/stable.json"}

    def stands(release: Release) -> None:
        expected.update(f"capitals/{release.slug}/{content.path}" for content in contents(release))
        assert keys() == expected
        assert follow(read) == release.number

    outcomes = []
    with doomed_publishers(place) as publish:
        for number in range(1, FIRST):
            code, steps = publish(numbered(artifacts, number, size), 0)
            assert code == 0 and steps
            stands(numbered(artifacts, number, size))
        with reading(read) as seen:
            for kill in range(KILLS):
                release = numbered(artifacts, FIRST + kill, size)
                step = 1 + int((kill + draw.random()) / KILLS * steps)  # a random one of each twentieth
                code, _ = publish(release, step, draw.choice((0, draw.uniform(0, seconds))))
                assert code == -signal.SIGKILL, f"step {step} of {steps}"
                now = follow(read)
                assert now in (release.number - 1, release.number), f"step {step} of {steps}"
                outcomes.append(now == release.number)
                files = {f"capitals/{release.slug}/{content.path}" for content in contents(release)}
                if f"capitals/{release.slug}/tunefleet.json" in keys():  # for who looks there without the channel
                    assert files <= keys(), f"step {step} of {steps}"
                release_and_move(place, release)
                stands(release)
                seen(release.number)
    assert not outcomes[0]


@pytest.mark.slow
def test_a_reader_of_a_bucket_sees_the_old_or_the_new(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(s3_objects, "PART", PART)
    prefix = f"kills/{tmp_path.name}"
    place = Destination(s3=f"s3://{BUCKET}/{prefix}", endpoint_url=s3.endpoint_url)

    def read(path: str) -> bytes:
        body: bytes = s3.client.get_object(Bucket=BUCKET, Key=f"{prefix}/{path}")["Body"].read()
        return body

    def keys() -> set[str]:
        return {key.removeprefix(prefix + "/") for key in s3.keys(prefix)}

    kill_and_publish_again(place, read, keys, tmp_path, size=PART + 50_000, seconds=0.02)
    assert s3.uploads(prefix) == []  # parts that nobody would ever finish


@pytest.mark.slow
def test_a_reader_of_a_folder_sees_the_old_or_the_new(tmp_path: Path):
    out = tmp_path / "out"
    place = Destination(folder=str(out))

    def keys() -> set[str]:
        return files_under(out).keys() - {"capitals/.publish.lock"}

    kill_and_publish_again(
        place, lambda path: (out / path).read_bytes(), keys, tmp_path / "made", size=200_000, seconds=0.002
    )
