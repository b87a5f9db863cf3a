"""infra/docker/Dockerfile: parsed and linted, and its claims held against the folder that it copies from."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.settings import PROJECT

DOCKERFILE = PROJECT / "infra" / "docker" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def instructions() -> list[tuple[str, str]]:
    """[("FROM", "python:3.11 AS libraries"), ...] with continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))  # a stage has what its base has
        else:
            found[name].append((word, rest))
    return found


def test_the_linter_has_nothing_to_say() -> None:
    answer = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")


@pytest.mark.parametrize("script", sorted((PROJECT / "infra").glob("**/*.s[hb]*")), ids=lambda path: path.name)
def test_a_shell_script_is_clean(script: Path) -> None:
    answer = subprocess.run([SHELLCHECK, script], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_runs_as_nobodys_root_and_knows_its_commit(target: str) -> None:
    said = stages()[target]
    assert [rest for word, rest in said if word == "USER"] == ["10001:10001"]
    assert ("ARG", 'COMMIT=""') in said
    assert ("ENV", "TUNEFLEET_COMMIT=${COMMIT}") in said
    assert [json.loads(rest) for word, rest in said if word == "ENTRYPOINT"] == [["tini", "--"]]
    assert said[-1][0] == "USER", "what follows would run as another user"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_every_argument_is_used(target: str) -> None:
    said = stages()[target]
    for name in [rest.partition("=")[0] for word, rest in said if word == "ARG"]:
        assert any(f"${{{name}}}" in rest for word, rest in said if word in ("RUN", "ENV"))


def test_pytorch_is_the_makefiles_version() -> None:
    makefile = re.search(r"^TORCH \?= (\S+)$", (PROJECT / "Makefile").read_text(), re.M)
    assert makefile is not None
    chosen = [rest.split('"')[1].split()[0] for word, rest in instructions() if word == "ARG" and "TORCH" in rest]
    assert chosen == [makefile[1]] * 2


def sent() -> set[str]:
    """The paths that .dockerignore lets through, as git knows them; last match wins."""
    tracked = subprocess.run(
        ["git", "-C", PROJECT, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    rules = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return {path for path in tracked if path and _is_sent(path, rules)}


def _is_sent(path: str, rules: list[str]) -> bool:
    """https://docs.docker.com/build/concepts/context/#dockerignore-files, for the patterns that stand in ours."""
    is_sent = True
    parts = path.split("/")
    for rule in rules:
        pattern = rule.removeprefix("!")
        tails = ["/".join(parts[start:]) for start in range(len(parts))] if pattern.startswith("**/") else [path]
        form = re.escape(pattern.removeprefix("**/")).replace(r"\*", "[^/]*") + "(/.*)?"
        if any(re.fullmatch(form, tail) for tail in tails):
            is_sent = rule.startswith("!")
    return is_sent


def test_what_is_copied_is_sent_and_exists() -> None:
    there = sent()
    for word, rest in instructions():
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert source == "." or source in there, f"COPY {source}"
    assert {path.split("/")[0] for path in there} == {
        *("pyproject.toml", "README.md", "LICENSE", "requirements", "flows", "tasks", "infra", "data", "deployments")
    }


@pytest.mark.parametrize("path", ["infra/.env", ".env", "infra/compose.env.example", ".git/config", ".tunefleet/x"])
def test_no_secret_and_no_history_is_sent(path: str) -> None:
    rules = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert not _is_sent(path, rules)


def test_an_editable_install_without_code_finds_the_code_that_comes_later(tmp_path: Path) -> None:
    """What the image does, so that a change of the code installs nothing: the same commands, in another folder."""
    (mkdir,) = [rest for word, rest in instructions() if word == "RUN" and "--editable" in rest]
    for source in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / source).write_bytes((PROJECT / source).read_bytes())
    site = tmp_path / "site"
    pip = f"{sys.executable} -m pip install --quiet --no-build-isolation --target {site}"
    command = mkdir.replace("pip install", pip)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    (tmp_path / "tasks" / "late").mkdir()
    (tmp_path / "tasks" / "late" / "__init__.py").write_text("HERE = __file__")
    code = f"import site; site.addsitedir({str(site)!r}); import tasks.late; print(tasks.late.HERE)"
    environment = {"PATH": os.environ["PATH"]}
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(tmp_path / "tasks" / "late" / "__init__.py")


def test_uids_and_folders_are_the_same_everywhere() -> None:
    """The image's user and its two writable folders are also named by compose, the pools and the manifests."""
    text = DOCKERFILE.read_text()
    assert "--uid 10001 --gid 10001 --home-dir /cache" in text
    for name in ("HOME=/cache", "TUNEFLEET_CACHE=/cache/", "PREFECT_HOME=/cache/"):
        assert name in text
    template = json.loads((PROJECT / "infra" / "work_pools" / "kubernetes.json").read_text())
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert {"name": "cache", "mountPath": "/cache"} in pod["containers"][0]["volumeMounts"]
    services = yaml.safe_load((PROJECT / "infra" / "compose.yaml").read_text())["services"]
    for worker in ("worker", "worker-packs", "setup"):
        assert [volume.split(":")[1] for volume in services[worker]["volumes"]] == ["/cache"]
