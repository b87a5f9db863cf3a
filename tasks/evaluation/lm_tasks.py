"""Loading a task of lm-eval's as the stock command does: same seeds, same examples, and errors that name the task."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from infra.errors import Fault, RequestError, StageError, TunefleetError
from tasks.evaluation.catalogue import refused_tasks, runs_code, task_manager, unknown_tasks

SEED, EARLY_SEED = 1234, 0  # lm-eval's own: of few-shot draws, NumPy and PyTorch; and of Python's `random`


def load(
    spec: str | dict[str, Any],
    include_path: str | None,
    *,
    num_fewshot: int | None = None,
    apply_chat_template: bool | None = False,
    has_template: bool = True,
    permitted: bool = False,
) -> tuple[Any, bool]:
    """({"tasks": ..., "groups": ...}, whether to apply the chat template) of a task, group or tag by name, or a config.

    Left out (None), the template is applied to tasks that generate, if there is one, and examples are the task's own.
    RequestError for what the recipe has wrong, StageError for a task that does not load.
    """
    name = spec if isinstance(spec, str) else spec["task"]
    named = [name] if isinstance(spec, str) else []
    if faults := unknown_tasks(named, include_path) or refused_tasks(named, include_path, permitted):
        raise RequestError(faults)
    # Some tasks shuffle their choices while they load: unseeded, base and adapter would be asked different questions.
    random.seed(EARLY_SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)
    try:
        loaded = task_manager(name if named else None, include_path).load([spec])
        empty = [task for task, one in loaded["tasks"].items() if not len(one.eval_docs)]
    except TunefleetError:  # a SIGTERM that came meanwhile
        raise
    except Exception as error:  # whatever a task's own code, its data or the way to the Hub can raise
        why = "it has no documents" if _nothing_there(error) else f"{type(error).__name__}: {error}"
        raise StageError(f"task {name!r} could not be loaded: {why}") from error
    if empty or not loaded["tasks"]:
        raise StageError(f"task {name!r} could not be loaded: {', '.join(empty) or 'it'} has no documents")
    tasks = loaded["tasks"].values()
    if not permitted and any(getattr(task, "UNSAFE_CODE", False) for task in tasks):  # as tasks in Python say it
        raise RequestError(runs_code(name))
    generates = all(task.config.output_type == "generate_until" for task in tasks)
    template = generates and has_template if apply_chat_template is None else apply_chat_template
    if template and not has_template:
        raise RequestError(
            Fault("apply_chat_template is true, and the tokenizer has no chat template; give base.chat_template")
        )
    for task in tasks:
        if num_fewshot and task.config.num_fewshot == 0:
            raise RequestError(
                Fault(
                    f"num_fewshot is {num_fewshot}, and task {task.config.task!r} is made for none (lm-eval would "
                    "ignore the number); leave num_fewshot out",
                    "evaluation.general",
                )
            )
        if num_fewshot is not None or task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=SEED)
    return loaded, template


@contextmanager
def same_random() -> Iterator[None]:
    """What is drawn inside leaves no trace: Python, NumPy and PyTorch go on as if it had not been."""
    own, arrays = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(own)
        numpy.random.set_state(arrays)


@contextmanager
def running_code(permitted: bool) -> Iterator[None]:
    """With permission, tasks may run the code that a model wrote; `evaluate`'s code_eval asks for this variable."""
    if not permitted:
        yield
        return
    before = os.environ.get("HF_ALLOW_CODE_EVAL")
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HF_ALLOW_CODE_EVAL")
        if before is not None:
            os.environ["HF_ALLOW_CODE_EVAL"] = before


def _nothing_there(error: Exception) -> bool:
    """lm-eval looks at a task's first document while it loads it, and `datasets` says then how many there are."""
    return isinstance(error, IndexError) and "size 0" in str(error)
