"""`python -m tasks.serving job.json`: a chat in a process of its own, on the terminal or the pipe of its caller."""

import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra import stage_process
from infra.errors import RequestError
from tasks.serving.chat import Chat, converse


def main(job: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the caller ignores it, and that is inherited
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from tasks.serving.speakers import Speakers

    on_terminal = sys.stdin.isatty()
    names = [*job["adapters"], *job["models"]]
    if on_terminal:
        write(f"loading {job['base_name']}" + (f" and {', '.join(names)}" if names else "") + " ...\n")
    voices = Speakers(
        Path(job["base"]),
        {name: Path(folder) for name, folder in job["adapters"].items()},
        models={name: Path(folder) for name, folder in job["models"].items()},
        plain=job["plain"],
        quantization=job["quantization"],
        device=job["device"],
        max_new_tokens=job["max_new_tokens"],
    )
    chat = Chat(voices, write, job["about"], job["trained_with"], job["system"])
    if on_terminal:
        chat.take("/who")
        write("Ask something; /help lists the commands.\n")
    converse(chat, typed(chat) if on_terminal else sys.stdin)


def typed(chat: Chat) -> Iterator[str]:
    """Lines from the keyboard, behind a prompt that says who is going to answer."""
    import readline  # noqa: F401 - lets input() edit and remember lines

    while True:
        try:
            yield input(f"{', '.join(chat.answering)}> ")
        except EOFError:
            write("\n")
            return


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except RequestError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        sys.exit(stage_process.EXIT_REQUEST)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the answers has enough
        sys.stderr.close()
        sys.exit(0)
