"""Checkpoints that outlive their machine: copied to a remote store as they are written, fetched by whoever goes on.

    <store>/work/checkpoints/<stage key>/<libraries, device, batch>/checkpoint-40/   as on the disk (checkpoints.py)
                                                                    best-30/         which that one refers to

A worker may die together with its disk. A local store needs none of this: its checkpoints lie at that very place.

Nobody has to be kept from writing. A checkpoint counts only with its list of hashes, which comes last, and whoever
fetches it hashes every byte: half an upload and the files of two writers are passed over. So a writer that was paused
and replaced may cost time, but never changes a result: it sends checkpoints of the very same training, and removes
none that is newer than these. When the training is done nobody looks here again; what such a writer leaves then goes
with `tunefleet gc`.
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback

from infra.errors import PreemptedError, TransientError
from infra.settings import scratch_folder
from infra.storage import Store
from tasks.training.checkpoints import HASHES, best_step, is_whole, newest_whole, only_writer, step_of

LOOK_SECONDS = 1.0  # between looks for a new checkpoint on the disk
AGAIN_SECONDS = 60.0  # after an upload that failed
LAST_SECONDS = 30.0  # for the last checkpoint, if this machine is to stop
GIVE_UP_SECONDS = 10.0  # for an upload that is to stop: as long as a part of a file may take

CHECKPOINT = "checkpoint-"
Log = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True)
class Kept:
    """The checkpoints of one job, on this disk and in the store; `path` is under the work folder of both."""

    store: Store
    path: str
    log: Log

    @property
    def folder(self) -> Path:
        return scratch_folder(self.store) / self.path

    @property
    def there(self) -> str:
        return f"work/{self.path}"

    @property
    def saved_step(self) -> int:
        """Of the newest whole checkpoint on this disk; 0 if there is none."""
        checkpoint = newest_whole(self.folder)
        return step_of(checkpoint) if checkpoint else 0

    def fetch(self) -> None:
        """Bring the newest whole checkpoint from a remote store, if it is newer than those on this disk.

        TransientError if the store cannot be read: starting from nothing would be dearer than another try.
        """
        if self.store.is_local:
            return
        with only_writer(self.folder, is_first=True):
            step = self.saved_step
            for damaged in self.folder.glob(f"{CHECKPOINT}*"):  # nobody goes on from it; nor is it to be sent
                if step_of(damaged) > step:
                    shutil.rmtree(damaged)
            try:
                for name in self._newer_in_store(step):
                    if self._bring(name):
                        self.log.info("going on from %s, which another machine left in the store", name)
                        return
            except Exception as error:
                raise TransientError(f"{self.store.root}/{self.there} cannot be read: {error}") from error

    @contextmanager
    def sent(self) -> Iterator[None]:
        """Copy each new checkpoint to a remote store for as long as this lasts; the newest, if there are several.

        Only who is asked to stop waits at the end, for a last upload: then this machine may be about to vanish.
        """
        if self.store.is_local:
            yield
            return
        sending = _Sending(self)
        sending.thread.start()
        try:
            yield
        except BaseException as error:
            if isinstance(error, PreemptedError) or not isinstance(error, Exception):
                sending.ends.set()
                sending.thread.join(LAST_SECONDS)
            raise
        finally:
            sending.given_up.set()
            sending.ends.set()
            sending.thread.join(GIVE_UP_SECONDS)

    def _newer_in_store(self, step: int) -> list[str]:
        """Names of checkpoints after `step`, newest first, whole or not."""
        names = [Path(name) for name in self.store.list_names(self.there) if name.startswith(CHECKPOINT)]
        return [one.name for one in sorted(names, key=step_of, reverse=True) if step_of(one) > step]

    def _bring(self, name: str) -> bool:
        """Whether the checkpoint `name` and the best weights that it refers to are on this disk now, and whole."""
        with _aside(self.folder / ".fetching") as aside:
            if not self._get(aside / name):
                return False
            names, best = [name], best_step(aside / name)
            if best is not None and not is_whole(self.folder / f"best-{best}"):
                names.insert(0, f"best-{best}")  # first: without it the checkpoint does not count
                if not self._get(aside / names[0]):
                    return False
            for one in names:
                shutil.rmtree(self.folder / one, ignore_errors=True)
                (aside / one).rename(self.folder / one)
            return True

    def _get(self, to: Path) -> bool:
        """Whether the folder of that name could be fetched, and is what was written."""
        hashes = self.store.read_json(f"{self.there}/{to.name}/{HASHES}")
        if not isinstance(hashes, dict):
            return False
        for name in [*hashes, HASHES]:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self.store.fs.get_file(f"{self.store.root}/{self.there}/{to.name}/{name}", str(to / name))
            except FileNotFoundError:
                return False
        return is_whole(to)


def forget(store: Store, path: str, log: Log) -> None:
    """Remove the checkpoints of a training that is done, from this disk and from the store."""
    shutil.rmtree(scratch_folder(store) / path, ignore_errors=True)
    if store.is_local:
        return
    try:
        with suppress(FileNotFoundError):
            store.fs.rm(f"{store.root}/work/{path}", recursive=True)
    except Exception as error:  # noqa: BLE001 - whatever the store's client raises; the training is done
        log.warning("%s/work/%s could not be removed, and stays until `tunefleet gc`: %s", store.root, path, error)


class _Sending:
    """The thread that sends, and how it is told to end."""

    def __init__(self, kept: Kept):
        self.kept = kept
        self.ends = threading.Event()  # one more look, then no more
        self.given_up = threading.Event()
        self.thread = threading.Thread(target=self._send_all, daemon=True, name=f"send {kept.path}")

    def _send_all(self) -> None:
        sent, pause, is_last = -1, LOOK_SECONDS, False
        while not is_last:
            self.ends.wait(pause)
            is_last, pause = self.ends.is_set(), LOOK_SECONDS  # first asked, then looked: nothing is missed
            if self.given_up.is_set():
                return
            newest = max(self.kept.folder.glob(f"{CHECKPOINT}*"), key=step_of, default=None)
            if newest is None or step_of(newest) == sent:
                continue
            try:
                self._send(newest)
                sent = step_of(newest)
            except _GivenUp:
                return
            except Exception as error:  # noqa: BLE001 - whatever the store's client raises; the training goes on
                self.kept.log.warning("%s is not in the store yet, and the training goes on: %s", newest.name, error)
                pause = AGAIN_SECONDS

    def _send(self, checkpoint: Path) -> None:
        kept, best = self.kept, best_step(checkpoint)
        names = [*([] if best is None else [f"best-{best}"]), checkpoint.name]
        with _aside(kept.folder / ".sending") as aside:
            for name in names:  # links: what is on its way stays when the training drops it
                shutil.copytree(kept.folder / name, aside / name, copy_function=os.link)
            for name in names:
                self._put(aside / name)
        for name in kept.store.list_names(kept.there):
            if name not in names and step_of(Path(name)) < step_of(checkpoint):
                kept.store.fs.rm(f"{kept.store.root}/{kept.there}/{name}", recursive=True)

    def _put(self, folder: Path) -> None:
        """Upload a folder, its list of hashes last; nothing to do if it is there already."""
        store, there = self.kept.store, f"{self.kept.there}/{folder.name}"
        hashes, found = json.loads((folder / HASHES).read_text()), store.read_json(f"{there}/{HASHES}")
        if found == hashes:
            return
        if found is not None:
            store.fs.rm_file(f"{store.root}/{there}/{HASHES}")  # what is replaced does not count meanwhile
        parts = Callback(hooks={"go on": self._go_on})  # called before a file and after each of its parts
        for name in [*hashes, HASHES]:
            store.fs.put_file(str(folder / name), f"{store.root}/{there}/{name}", callback=parts)

    def _go_on(self, *_: Any, **__: Any) -> None:
        if self.given_up.is_set():
            raise _GivenUp


class _GivenUp(Exception):
    """The training is over: this upload is of no use."""


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards; whatever a killed process left there goes, too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
