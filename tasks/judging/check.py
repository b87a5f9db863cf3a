"""What would keep a judge from judging, found before anything is trained."""

import difflib
from pathlib import Path

from infra.errors import Fault, RequestError, StageError, TransientError
from tasks.ingestion.base_model import identify, packaged_file
from tasks.judging.endpoint import connected
from tasks.recipe.schema import Judge

_SHOWN = 10  # names of models in a message


def judge_faults(judge: Judge) -> list[Fault]:
    """A model that is not there, a server that takes no such key or is none, a name that it does not have.

    TransientError where nobody answers: the server may be busy, and then nothing is wrong with the request.
    """
    if judge.endpoint is None:
        return _of_model(located(judge.model or ""))
    name = str(judge.name)
    try:
        with connected(judge.endpoint, judge.api_key) as endpoint:
            there = endpoint.models()
            if there is None:  # no list: one question tells as much
                endpoint.reply(name, "Reply with the letter A.")
                return []
    except TransientError:
        raise
    except (RequestError, StageError) as error:
        return [Fault(str(error), "evaluation.judge.endpoint")]
    if name in there:
        return []
    near = difflib.get_close_matches(name, there, n=3) or there[:_SHOWN]
    more = ", ..." if len(near) < len(there) else ""
    message = f"got {name!r}, which {judge.endpoint} does not list; it lists {', '.join(near) or 'none'}{more}"
    return [Fault(message, "evaluation.judge.name")]


def located(model: str) -> str:
    """`model` as an absolute path if it is a folder's, else as it is."""
    folder = Path(model).expanduser()
    looks_like_one = model.startswith((".", "/", "~")) or folder.is_dir()
    return str(folder.resolve()) if looks_like_one else model


def _of_model(model: str) -> list[Fault]:
    where = "evaluation.judge.model"
    if Path(model).is_absolute():
        if (Path(model) / "config.json").is_file():
            return []
        return [Fault(f"{model} is no folder with a config.json; give a folder that save_pretrained wrote", where)]
    try:
        if model.startswith("package://"):
            packaged_file(model)
        else:
            identify(model, None)
    except RequestError as error:
        return [Fault(str(error).replace("base.model", "got"), where)]
    return []
