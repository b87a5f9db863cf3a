"""Publishing to a folder: all of a release or none of it, also when the publisher is killed."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import IntegrityError, RequestError
from tasks.publishing import folder
from tasks.publishing.release import Release, contents
from tests.publishing import FILES, OVERRIDDEN, PUBLISHED, ROOT, files_under, make_release

# Publishes what make_release made, and kills itself just before the given one of its steps on the disk (0: never);
# prints the number of each step that is a rename, and of the last step.
PUBLISHER = """
import os, signal, sys
from pathlib import Path
from tasks.publishing import folder
from tests.publishing import make_release

artifact, target, last_step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
release, steps, renames = make_release(artifact), 0, []

def watch(event, arguments):
    global steps
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and target in str(arguments[0]):
        steps += 1
        if steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "os.rename":
            renames.append(steps)

sys.addaudithook(watch)
folder.publish(release, target)
print(*renames, steps)
"""


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_release(tmp_path / "artifact")


def whole(release: Release) -> dict[str, bytes]:
    return {content.path: content.read() for content in contents(release)}


def test_the_target_holds_exactly_the_release(release: Release, tmp_path: Path):
    published = folder.publish(release, tmp_path / "out")
    target = tmp_path / "out" / "capitals" / f"adapter-{release.digest[:12]}"
    assert (published.to, published.uri, published.revision) == ("folder", str(target), None)
    assert files_under(target) == whole(release)
    assert files_under(target).keys() == PUBLISHED


def test_publishing_again_changes_nothing(release: Release, tmp_path: Path):
    target = Path(folder.publish(release, tmp_path / "out").uri)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in [target, *target.rglob("*")]}
    folder.publish(release, tmp_path / "out")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in [target, *target.rglob("*")]} == before


def test_other_releases_stay_where_they_are(release: Release, tmp_path: Path):
    other = make_release(tmp_path / "other", FILES | {"adapter_config.json": b"{}"})
    merged = make_release(tmp_path / "merged", what="merged")
    uris = [Path(folder.publish(each, tmp_path / "out").uri) for each in (release, other, merged)]
    for uri, each in zip(uris, (release, other, merged), strict=True):
        assert files_under(uri) == whole(each)


def flip_a_byte(target: Path) -> None:
    weights = target / "adapter_model.safetensors"
    weights.write_bytes(b"\xff" + weights.read_bytes()[1:])


def become_a_file(target: Path) -> None:
    shutil.rmtree(target)
    target.write_text("not a folder")


def become_a_link(target: Path) -> None:
    target.rename(target.with_name("elsewhere"))
    target.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        become_a_file,
        become_a_link,
        lambda target: (target / "adapter_config.json").unlink(),
        lambda target: (target / "tunefleet.json").write_text(""),
        lambda target: (target / "model-00002-of-00002.safetensors").write_bytes(b"stale shard"),
    ],
    ids=["flipped byte", "a file", "a link", "file missing", "manifest empty", "stale shard"],
)
def test_a_damaged_target_is_replaced(release: Release, tmp_path: Path, damage: Callable[[Path], object]):
    target = Path(folder.publish(release, tmp_path / "out").uri)
    damage(target)
    folder.publish(release, tmp_path / "out")
    assert files_under(target) == whole(release)
    assert not target.is_symlink()
    assert {path.name for path in target.parent.iterdir()} - {"elsewhere"} == {target.name, ".publish.lock"}


def test_a_killed_publisher_leaves_no_half_release(release: Release, tmp_path: Path):
    target = tmp_path / "out" / release.name / release.slug

    def damaged_target() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        folder.publish(release, tmp_path / "out")
        flip_a_byte(target)

    def run(last_step: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PUBLISHER, str(release.folder), str(tmp_path / "out"), str(last_step)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    damaged_target()
    damaged = files_under(target)
    aside, into_place, last = map(int, run(0).stdout.split())
    for step, leaves in [
        (2, damaged),
        (aside // 2, damaged),
        (aside, damaged),
        (into_place, None),
        (into_place + 1, whole(release)),
        (last, whole(release)),
    ]:
        damaged_target()
        assert run(step).returncode == -signal.SIGKILL
        assert (files_under(target) if target.exists() else None) == leaves, f"killed at step {step} of {last}"
        folder.publish(release, tmp_path / "out")
        assert files_under(target) == whole(release)
        assert {path.name for path in target.parent.iterdir()} == {target.name, ".publish.lock"}


def test_publishers_of_one_release_take_turns(release: Release, tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        uris = {
            each.result().uri for each in [pool.submit(folder.publish, release, tmp_path / "out") for _ in range(8)]
        }
    (target,) = map(Path, uris)
    assert files_under(target) == whole(release)
    assert {path.name for path in target.parent.iterdir()} == {target.name, ".publish.lock"}


def test_an_artifact_that_changes_meanwhile_is_not_released(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copyfile = shutil.copyfile

    def change_then_copy(source: Path, copy: Path) -> None:
        (release.folder / "adapter_config.json").write_bytes(b"{}")
        copyfile(source, copy)

    monkeypatch.setattr(shutil, "copyfile", change_then_copy)
    with pytest.raises(IntegrityError, match="changed while it was being published"):
        folder.publish(release, tmp_path / "out")
    assert not (tmp_path / "out" / release.name / release.slug).exists()


def test_a_standing_release_keeps_its_card(release: Release, tmp_path: Path):
    target = Path(folder.publish(release, tmp_path / "out").uri)
    before = whole(release)
    folder.publish(make_release(tmp_path / "artifact", card=release.card + "\nReworded.\n"), tmp_path / "out")
    assert files_under(target) == before


def test_a_standing_card_that_tells_another_reason_is_not_passed_on(release: Release, tmp_path: Path):
    forced = replace(release, number=2, manifest=OVERRIDDEN)
    for first, second, says in (
        (release, forced, "released without an override; this is capitals v2, released by override"),
        (forced, release, "capitals v2, released by override .'the customer waits'.; this is capitals v1"),
    ):
        place = tmp_path / first.tag
        target = Path(folder.publish(first, place).uri)
        with pytest.raises(RequestError, match=says):
            folder.publish(second, place)
        assert files_under(target) == whole(first)
        again = replace(first, manifest={**first.manifest, "override": _of_another_day(first.manifest.get("override"))})
        folder.publish(again, place)  # the same reason, whoever gave it when
        folder.publish(second, tmp_path / f"{first.tag}-other")


def _of_another_day(override: dict[str, str] | None) -> dict[str, str] | None:
    return override and {**override, "at": "another day"}


def test_what_a_killed_publisher_of_another_release_left_is_cleared_away(release: Release, tmp_path: Path):
    left = tmp_path / "out" / "capitals" / ".merged-0123456789ab.new"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    target = Path(folder.publish(release, tmp_path / "out").uri)
    assert {path.name for path in target.parent.iterdir()} == {target.name, ".publish.lock"}


# Publishes to a disk of 256 KiB, which only this process has; `free` is what other programs report as free on it.
SMALL_DISK = """
import json, os, shutil, subprocess, sys
from pathlib import Path
from infra.errors import RequestError
from tasks.publishing import folder
from tests.publishing import files_under, make_release

artifact, target, told = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", target], check=True)
if told == "nothing":
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40)  # a quota, say, which nobody is told of
release = make_release(Path(artifact), {"model.safetensors": bytes(400_000)})
try:
    folder.publish(release, target)
except RequestError as error:
    small = folder.publish(make_release(Path(artifact + "-small"), {"model.safetensors": bytes(40_000)}), target)
    print(json.dumps([str(error), error.exit_code, sorted(files_under(Path(target))), small.uri]))
"""


@pytest.mark.parametrize("told", ["what is free", "nothing"])
def test_a_full_disk_is_said_and_nothing_is_left_on_it(tmp_path: Path, told: str):
    (tmp_path / "disk").mkdir()
    arguments = ["unshare", "-rm", sys.executable, "-c", SMALL_DISK, str(tmp_path / "artifact")]
    ended = subprocess.run([*arguments, str(tmp_path / "disk"), told], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip(f"no disk of its own for a process here: {ended.stderr}")
    says, exit_code, left, small = json.loads(ended.stdout)
    assert "bytes, and" in says and "nothing was released" in says
    assert exit_code == 2
    slug = Path(small).name
    expected = {f"capitals/{slug}/{path}" for path in ("README.md", "model.safetensors", "tunefleet.json")}
    assert set(left) == expected | {"capitals/.publish.lock"}


@pytest.mark.parametrize("path", ["../stray", "/etc/hostname", "a/./b"])
def test_a_manifest_that_names_files_elsewhere_is_none_of_ours(release: Release, tmp_path: Path, path: str):
    target = Path(folder.publish(release, tmp_path / "out").uri)
    manifest = json.loads((target / "tunefleet.json").read_text())
    manifest["files"][path] = {"sha256": "0" * 64, "size": 1}
    (target / "tunefleet.json").write_text(json.dumps(manifest))
    folder.publish(release, tmp_path / "out")
    assert files_under(target) == whole(release)


@pytest.mark.parametrize("name", ["x" * 300, "taken"])
def test_a_name_that_the_disk_does_not_take_is_said(tmp_path: Path, name: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "taken").touch()
    with pytest.raises(RequestError, match="cannot publish to"):
        folder.publish(make_release(tmp_path / "artifact", name=name), tmp_path / "out")


def test_check_knows_how_much_is_free(tmp_path: Path):
    assert folder.check(tmp_path / "out", need_bytes=1) == []
    (fault,) = folder.check(tmp_path / "out", need_bytes=2**60)
    assert "1,152,921,504,606,846,976 bytes" in fault.message


def test_check_finds_no_fault_and_makes_nothing(tmp_path: Path):
    assert folder.check(tmp_path / "not" / "yet" / "there") == []
    assert folder.check(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_check_names_what_is_in_the_way(tmp_path: Path):
    (tmp_path / "file").touch()
    (fault,) = folder.check(tmp_path / "file" / "below")
    assert "is a file" in fault.message
    (fault,) = folder.check("/proc/nowhere")
    assert "not writable" in fault.message
