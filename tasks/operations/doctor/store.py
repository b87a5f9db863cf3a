"""Whether the store can be written, and keeps the one promise that claims rest on: of two creations, one succeeds."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

from infra.claims import CLAIM_SECONDS
from infra.errors import RequestError
from infra.storage import Store
from tasks.operations.doctor.apart import first_line
from tasks.operations.doctor.finding import Finding, fault, ok, warning

_APART_SECONDS = CLAIM_SECONDS / 2  # clocks further apart than this may end claims that are alive


def look_at_store(root: str) -> Iterator[Finding]:
    try:
        store = Store(root)
        with _only_a_look(store):
            is_s3 = hasattr(store.fs, "call_s3")
            if is_s3 and not _has_bucket(store):
                yield fault("access", f"the bucket of {store.root} does not exist", "make it, or correct the store")
                return
            store.check_writable()
            yield ok("access", f"{store.root} can be written")
            yield exclusive_creation(store)
            if is_s3:
                yield clock(store)
    except RequestError as error:
        yield fault("access", first_line(error).removeprefix("RequestError: "), "correct --store or TUNEFLEET_STORE")


def exclusive_creation(store: Store) -> Finding:
    """Two writers who create the same file; without this two runs would do the same work and overwrite each other."""
    path = f".create-probe-{secrets.token_hex(4)}"
    try:
        first, second = store.create_json(path, {"writer": 1}), store.create_json(path, {"writer": 2})
        kept = (store.read_json(path) or {}).get("writer")
    except OSError as error:
        found = f"a file cannot be created exclusively: {first_line(error)}"
        return fault("claims", found, "take a file system with hard links, or an S3 server with If-None-Match")
    finally:
        with suppress(OSError):
            store.fs.rm_file(f"{store.root.split('://')[-1]}/{path}")
    if (first, second, kept) == (True, False, 1):
        how = "hard links" if store.is_local else "If-None-Match"
        return ok("claims", f"of two creations of one file the second was refused ({how})")
    return fault(
        "claims",
        "a file that was there was created a second time, so two runs would do the same work and overwrite each other",
        "update the S3 server to one that honours If-None-Match, or take another store",
    )


def _has_bucket(store: Store) -> bool:
    """Asked first: some S3 servers make a missing one when something is put into it, and this is only a look."""
    from botocore.exceptions import BotoCoreError

    try:
        store.fs.call_s3("head_bucket", Bucket=_bucket(store))
    except FileNotFoundError:
        return False
    except (OSError, BotoCoreError):  # writing says more about what is wrong
        return True
    return True


def _bucket(store: Store) -> str:
    return store.root.split("://")[-1].split("/")[0]


def clock(store: Store) -> Finding:
    """Claims name the time until which they hold, by the clock of the machine that holds them."""
    try:
        before = time.time()
        answer = store.fs.call_s3("head_bucket", Bucket=_bucket(store))
        now = (before + time.time()) / 2
        there = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    except (OSError, LookupError, TypeError, ValueError) as error:
        return warning("clock", f"the store does not tell its time: {first_line(error)}", "keep NTP on everywhere")
    apart = abs(now - there)
    if apart > _APART_SECONDS:
        found = f"this machine's clock and the store's are {apart:.0f} s apart; claims are renewed within 60 s"
        return warning("clock", found, "turn NTP on, on every machine that works here: timedatectl set-ntp true")
    return ok("clock", "this machine's and the store's agree")


@contextmanager
def _only_a_look(store: Store) -> Iterator[None]:
    """Folders that were not there before are gone again."""
    made = [folder for folder in (Path(store.root), *Path(store.root).parents) if not folder.exists()]
    try:
        yield
    finally:
        if store.is_local:
            with suppress(OSError):  # somebody has begun to use it
                for folder in made:
                    folder.rmdir()
