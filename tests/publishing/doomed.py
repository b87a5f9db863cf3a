"""Publishers that kill themselves at a given step, each a process of its own.

    python -m tests.publishing.doomed PLACE

PLACE is a destination as JSON. Each line of stdin, [artifact, number, step, delay], forks a publisher of the folder
that `make_release` made: a fork takes milliseconds, a new interpreter a second. A step is a request to S3, or something
done to the destination's folder; delay are seconds after it, so that a request is killed under way, too. Step 0 never
comes. Each line of stdout is [exit code, steps], the latter null for one that was killed.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from botocore.client import BaseClient

from tasks.publishing import s3_objects
from tasks.publishing.destinations import move, publish_to, seen
from tasks.publishing.pointer import pointer_to
from tasks.publishing.release import Release
from tasks.recipe.schema import Destination
from tests.publishing import files_under, make_release

PART = 5 * 2**20  # bytes, the least that S3 allows of a part that is not the last
_ON_DISK = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def release_and_move(place: Destination, release: Release) -> None:
    """The order of tasks/publishing/task.py: read the channel, send, move the channel."""
    before = seen(place, release.name, "stable", [release.what])
    published = publish_to(place, release)
    pointer = pointer_to(
        {release.slug: published}, name=release.name, channel="stable", number=release.number, adapter=release.digest
    )
    move(place, pointer, before, {release.what: published.revision})


class Steps:
    """Counts them, from several threads, and kills the process at the last one."""

    def __init__(self, last: int, delay: float):
        self.last, self.delay, self.count, self.lock = last, delay, 0, threading.Lock()

    def step(self) -> None:
        with self.lock:
            self.count += 1
            dies = self.count == self.last
        if dies and self.delay:
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif dies:
            os.kill(os.getpid(), signal.SIGKILL)


def publish(place: Destination, artifact: Path, number: int, steps: Steps) -> None:
    release = make_release(artifact, files_under(artifact), number=number)
    call = BaseClient._make_api_call

    def request(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        steps.step()
        return call(client, operation, arguments)

    def on_disk(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _ON_DISK and place.folder and place.folder in str(arguments[0]):
            steps.step()

    BaseClient._make_api_call = request
    sys.addaudithook(on_disk)
    release_and_move(place, release)


def main(place: Destination) -> None:
    s3_objects.PART = PART
    for line in sys.stdin:
        artifact, number, last, delay = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            steps = Steps(last, delay)
            try:
                publish(place, Path(artifact), number, steps)
                if 0 < last <= steps.count:
                    signal.pause()  # done before the kill came, which is on its way
                os.write(writer, b"%d" % steps.count)
            except BaseException:  # noqa: BLE001 - the child must not go on as its parent
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader) as answer:
            print(json.dumps([os.waitstatus_to_exitcode(status), json.loads(answer.read() or "null")]), flush=True)


if __name__ == "__main__":
    main(Destination.model_validate_json(sys.argv[1]))
