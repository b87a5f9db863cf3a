"""The start command of a vLLM server for adapters of one base, and the files that it needs.

What vLLM would reject is refused here, all of it at once (lint.py). Base and adapters are named by folders: a path is
the one thing that vLLM takes as it is, while a Hub id would mean whatever stands there by then. A base from the Hub in
a store that is not on this machine is named by its id and commit, so that it is not downloaded for a look.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import Fault, RequestError
from infra.storage import Store
from tasks.ingestion.chat_template import CHAT_TEMPLATE, with_fixed_date
from tasks.registry.inventory import place_of
from tasks.registry.judged import Judged
from tasks.serving.lint import highest_rank, lint, max_lora_rank, read_shapes, remarks
from tasks.serving.naming import names_of, refuse_several_bases

CONFIG = "adapter_config.json"
LORA_MODULES, START = "lora_modules.json", "serve.sh"
Module = dict[str, str]


@dataclass(frozen=True)
class Server:
    """How to start it, and what to know before."""

    argv: list[str]
    lora_modules: list[Module]  # as vLLM reads them: name, path, base_model_name
    notes: list[str]
    files: dict[str, str] = field(default_factory=dict)  # what `--output` gets: name to content

    @property
    def command(self) -> str:
        """For a shell; an option a line."""
        lines, values = [shlex.join(self.argv[:3])], list(self.argv[3:])
        for word in values:
            quoted = shlex.quote(word)
            starts = word.startswith("--") or word.startswith("{")
            lines = [*lines, quoted] if starts else [*lines[:-1], f"{lines[-1]} {quoted}"]
        return " \\\n  ".join(lines)


def server(store: Store, members: Sequence[Judged], *, port: int, output: Path | None = None) -> Server:
    """A server of these adapters, or of one whole model; RequestError with everything that keeps vLLM from it.

    `output` is the folder that `files` are going to lie in; it is needed where one of them is named in the command.
    """
    refuse_several_bases(members)
    # vLLM looks for the base's name first: an adapter of the same name would never be asked.
    alone = all(one.method == "full" for one in members)
    named = names_of(members, () if alone else (members[0].base.name,))
    whole = {name: one for name, one in named.items() if one.method == "full"}
    if whole and len(named) > 1:
        hint = "is a whole model, and is served alone: tunefleet vllm"
        raise RequestError([Fault(f"{one.label} {hint} {name}") for name, one in whole.items()])
    notes = [f"{one.label}: {one.says}" for one in members if not one.passed]
    if whole:
        ((name, model),) = whole.items()
        argv = ["vllm", "serve", str(store.fetch(model.adapter)), "--served-model-name", name, "--port", str(port)]
        return Server(argv, [], notes)
    base = members[0].base
    manifest = store.manifest(base)
    architecture = manifest["facts"]["architecture"]
    vocabulary = (store.read_json(f"{place_of(base)}/config.json") or {}).get("vocab_size")
    modules, ranks, faults = [], [], []
    for name, one in named.items():
        folder = store.fetch(one.adapter)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        said = lint(config, read_shapes(folder), architecture, vocabulary)
        faults += [Fault(text, one.label) for text in said]
        notes += [f"{one.label}: {text}" for text in remarks(config, architecture)]
        ranks.append(highest_rank(config))
        modules.append({"name": name, "path": str(folder), "base_model_name": base.name})
    if faults:
        raise RequestError(faults)
    if quantized := [one.label for one in named.values() if one.quantization == "nf4"]:
        notes.append(
            f"{', '.join(quantized)}: judged on the base in 4 bits (NF4), and vLLM loads it in 16. What was judged is "
            "served by the model merged into the 4-bit weights (publish.what: [merged], publish.merge.into: 4-bit)."
        )
    argv = ["vllm", "serve", *_base(store, members[0], manifest), "--served-model-name", base.name]
    files = {LORA_MODULES: json.dumps(modules, indent=1) + "\n"}
    if template := _template(store, members[0], manifest):
        if argv[2].startswith("/"):
            argv += ["--chat-template", f"{argv[2]}/{CHAT_TEMPLATE}"]
        elif output is None:
            raise RequestError(
                f"the chat template of {argv[2]} is not the one on the Hub: give --output DIR, a folder for it."
            )
        else:
            files[CHAT_TEMPLATE] = template
            argv += ["--chat-template", str(output.absolute() / CHAT_TEMPLATE)]
    argv += ["--enable-lora", "--max-lora-rank", str(max_lora_rank(ranks)), "--max-loras", str(len(modules))]
    argv += ["--port", str(port), "--lora-modules", *(json.dumps(module) for module in modules)]
    return Server(argv, modules, notes, files)


def write(plan: Server, output: Path) -> list[str]:
    """Leave the files and the command in `output`; the paths that were written.

    RequestError for a file that is there with another content: it may be somebody's, or serve others.
    """
    contents = {**plan.files, START: f"#!/bin/sh\nexec {plan.command}\n"}
    try:
        output.mkdir(parents=True, exist_ok=True)
        theirs = [
            Fault(f"{file} exists already and says something else; give another --output, or remove it first.")
            for name, content in contents.items()
            if (file := output / name).exists() and file.read_bytes() != content.encode("utf-8")
        ]
        if theirs:
            raise RequestError(theirs)
        for name, content in contents.items():
            (output / name).write_text(content, encoding="utf-8")
        (output / START).chmod(0o755)
    except OSError as error:
        raise RequestError(f"--output {output} cannot be written: {error.strerror}; give another folder.") from error
    return [str(output / name) for name in contents]


def _base(store: Store, one: Judged, manifest: dict[str, Any]) -> list[str]:
    """The base as vLLM's first argument, and its revision if it has one."""
    if store.is_local:
        return [one.base.uri]
    if commit := manifest["spec"].get("commit"):
        return [manifest["facts"]["model"], "--revision", commit]
    return [str(store.fetch(one.base))]


def _template(store: Store, one: Judged, manifest: dict[str, Any]) -> str | None:
    """The base's chat template, if it is not the one that the model came with: given by the recipe, or dated."""
    try:
        text = store.fs.cat_file(f"{one.base.uri}/{CHAT_TEMPLATE}").decode()
    except FileNotFoundError:
        return None
    dated = "strftime_now" in text and with_fixed_date(text) == text
    return text if manifest["spec"].get("chat_template") or dated else None
