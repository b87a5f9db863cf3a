"""Write python_qa.csv: what a function or method of Python's standard library does, in its docstring's first sentence.

    python3.11 data/make_python_qa.py > data/python_qa.csv

The rows are dealt module by module, one round after the other, so that no module crowds out the others. A sentence
that several functions share is left out, so that no answer stands both in the training rows and in the held-out ones.
The committed file was made by CPython 3.11.7; another version has other docstrings.
"""

import csv
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest

ROWS = 300
SHORTEST, LONGEST = 20, 140  # characters of an answer
MODULES = """
    base64 binascii bisect bz2 calendar cmath colorsys contextlib copy csv dataclasses difflib dis fnmatch functools gc
    getpass glob gzip hashlib heapq hmac html importlib.util inspect io json keyword linecache locale logging math
    mimetypes operator os os.path pickle platform pprint random re secrets shlex shutil signal socket ssl statistics
    string struct subprocess sys sysconfig tempfile textwrap threading time timeit tokenize traceback types unicodedata
    urllib.parse uuid warnings weakref zipfile zlib
"""
CLASSES = """
    builtins.bytes builtins.dict builtins.float builtins.int builtins.list builtins.set builtins.str
    collections.Counter collections.OrderedDict collections.deque datetime.date datetime.datetime pathlib.Path
    random.Random argparse.ArgumentParser decimal.Decimal fractions.Fraction queue.Queue threading.Event
    string.Formatter
"""


def first_sentence(text: str) -> str | None:
    """The first sentence of a docstring, or None if it is no plain sentence: a signature, an example, mark-up."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.match(r"[A-Z][^\n]*?[a-z)\]'\"]\.(?= [A-Z]|$)", paragraph)
    if not sentence or not SHORTEST <= len(sentence[0]) <= LONGEST:
        return None
    return None if re.search(r"->|>>>|::|`|\*\*|[<|\\]|e\.g\.$|i\.e\.$", sentence[0]) else sentence[0]


def of_module(name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of the functions that a module offers, in the order of their names."""
    module = importlib.import_module(name)
    for key in sorted(getattr(module, "__all__", None) or vars(module)):
        value = getattr(module, key, None)
        if not key.startswith("_") and inspect.isroutine(value) and (value.__module__ or name).strip("_") in name:
            yield f"{name}.{key}", value.__doc__ or ""


def of_class(path: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of a class's own public methods, in the order of their names."""
    module, _, name = path.rpartition(".")
    shown = path.removeprefix("builtins.")
    for key, value in sorted(vars(getattr(importlib.import_module(module), name)).items()):
        if not key.startswith("_") and callable(value):
            yield f"{shown}.{key}", value.__doc__ or ""


def rows() -> list[tuple[str, str]]:
    """(question, answer), `ROWS` of them."""
    groups = [*(of_module(name) for name in MODULES.split()), *(of_class(path) for path in CLASSES.split())]
    found = [[(name, answer) for name, text in group if (answer := first_sentence(text))] for group in groups]
    times = Counter(answer for group in found for _, answer in group)
    dealt = [entry for one_round in zip_longest(*found) for entry in one_round if entry and times[entry[1]] == 1]
    return [(f"What does {name} do?", answer) for name, answer in dealt[:ROWS]]


if __name__ == "__main__":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["question", "answer"])
    writer.writerows(rows())
