"""Verbs that put released adapters to use: hand them to vLLM, talk to them, compare two of them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.commands.options import AsJson, StoreOption
from infra.errors import RequestError

if TYPE_CHECKING:
    from infra.storage import Store
    from tasks.registry.judged import Judged

Run = Annotated[
    str | None, Parameter(name="--run", help="adapters of this run instead, released or not: its id, or latest")
]
Releases = Annotated[tuple[str, ...], Parameter(name="NAME", negative=(), help="NAME, NAME@VERSION or NAME@CHANNEL")]


def vllm(
    names: Releases = (),
    *,
    channel: Annotated[str, Parameter(help="of NAMEs without a version, and of all if none is named")] = "stable",
    run_: Run = None,
    output: Annotated[Path | None, Parameter(help="folder for lora_modules.json and serve.sh")] = None,
    port: int = 8000,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Print the command that serves adapters of one base with vLLM; refuse what vLLM would reject.

    Example: tunefleet vllm --channel stable --output serving
    """
    if not 0 < port < 65536:
        raise RequestError(f"--port is {port}; allowed are 1 to 65535.")
    from tasks.serving.vllm_server import server, write

    opened = _open(store)
    members = _of_run(opened, run_, names) if run_ else _of_channel(opened, names, channel)
    plan = server(opened, members, port=port, output=output)
    written = write(plan, output) if output else []
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if json_:
        answer = {"argv": plan.argv, "lora_modules": plan.lora_modules, "notes": plan.notes, "written": written}
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print(plan.command)
    return 0


def chat(
    names: Releases = (),
    *,
    run_: Run = None,
    precision: Annotated[
        Literal["none", "nf4"] | None, Parameter(help="of the base: 16 or 4 bits; else the one they were judged in")
    ] = None,
    max_new_tokens: Annotated[int, Parameter(help="longest answer, tokens")] = 256,
    system: Annotated[str | None, Parameter(help="system message; else the one each was trained with")] = None,
    store: StoreOption = None,
) -> int:
    """Ask base and adapters side by side. Without names the newest release of each; /help lists the commands.

    Example: tunefleet chat --run latest
    """
    if max_new_tokens < 1:
        raise RequestError(f"--max-new-tokens is {max_new_tokens}; allowed are 1 and more.")
    from infra.gpus import CPU, device_slot, devices
    from tasks.registry.judged import judged, newest
    from tasks.serving.job import chat_job
    from tasks.training.launching import device_environment

    opened = _open(store)
    if run_:
        members = _of_run(opened, run_, names)
    elif names:
        members = [judged(opened, name) for name in names]
    else:
        members = newest(opened)
    # On a CPU a chat may run beside a training; on a GPU it waits for the memory.
    with nullcontext(CPU) if devices() == [CPU] else device_slot(1, on_wait=_tell) as device:
        job = chat_job(
            opened,
            members,
            precision=precision,
            device="cpu" if device == CPU else "cuda:0",
            max_new_tokens=max_new_tokens,
            system=system,
        )
        return _child(job, device_environment(device, 1))


def compare(
    a: Annotated[str, Parameter(name="A", help="NAME, NAME@VERSION, NAME@CHANNEL or RUN:NAME")],
    b: Annotated[str, Parameter(name="B", help="the same")],
    *,
    store: StoreOption = None,
    json_: AsJson = False,
) -> int:
    """Say what changed from A to B: recipe, data, base, training, and each task's scores, document by document.

    Example: tunefleet compare iso-dates@v1 iso-dates@stable
    """
    from tasks.registry.compare import compare as compare_two
    from tasks.registry.judged import judged

    opened = _open(store)
    answer = compare_two(opened, judged(opened, a), judged(opened, b))
    if json_:
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    from rich.console import Console

    from tasks.registry.compare_table import print_comparison

    print_comparison(answer, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    return 0


def _open(store: str | None) -> "Store":
    from infra.settings import default_store
    from infra.storage import Store

    return Store(store or default_store())


def _of_run(store: "Store", run: str, names: tuple[str, ...]) -> "list[Judged]":
    from tasks.registry.judged import of_run

    return of_run(store, run, names)


def _of_channel(store: "Store", names: tuple[str, ...], channel: str) -> "list[Judged]":
    """Those named, and without names what `channel` stands at, of every name that has it."""
    from tasks.registry.judged import judged

    names = names or tuple(
        name for name in store.list_names("channels") if channel in store.list_names(f"channels/{name}")
    )
    if not names:
        raise RequestError(
            f"no release in {store.root} stands at the channel {channel!r}: name releases, or let one stand there: "
            f"tunefleet promote NAME@VERSION --to {channel}. Adapters of a run, released or not: --run latest"
        )
    return [judged(store, name if "@" in name or ":" in name else f"{name}@{channel}") for name in names]


def _child(job: dict[str, object], environment: dict[str, str]) -> int:
    """The chat's exit code. It has this process's terminal; Ctrl-C is for it alone."""
    from infra.settings import PROJECT

    quiet = {
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "tasks.serving", str(file)]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # so that the child is ended too
        process = subprocess.Popen(command, env={**os.environ, **quiet, **environment})
        try:
            return process.wait()
        finally:
            process.terminate()
            process.wait()
            signal.signal(signal.SIGINT, before)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)
