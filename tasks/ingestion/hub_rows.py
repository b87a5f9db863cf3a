"""Rows of a data set on the Hugging Face Hub, at one commit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.errors import RequestError, TransientError


def hub_commit(name: str, revision: str | None) -> str:
    """The commit that `revision` of a Hub data set (its main branch, if None) stands for now."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    with _hub_errors(f"data.hub {name!r} (revision {revision!r})"):
        commit = HfApi().dataset_info(name, revision=revision, timeout=20).sha
    if commit is None:
        raise TransientError(f"data.hub {name!r}: the Hub named no commit.")
    return commit


def hub_rows(name: str, config: str | None, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """The rows of one split; RequestError if there is no such data set, configuration, split or revision."""
    from datasets import load_dataset

    with _hub_errors(f"data.hub {name!r} (config {config!r}, split {split!r}, revision {revision!r})"):
        rows = load_dataset(name, config, split=split, revision=revision)
    yield from rows


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Raise what huggingface_hub and datasets raise as errors of this project."""
    from datasets.exceptions import DataFilesNotFoundError, DatasetsError
    from huggingface_hub import errors

    try:
        yield
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise RequestError(f"{what} is not on the Hub; a private or gated one needs HF_TOKEN.") from error
    except errors.RevisionNotFoundError as error:
        raise RequestError(f"{what}: the data set has no such revision; name a branch, a tag or a commit.") from error
    except DataFilesNotFoundError as error:
        raise RequestError(f"{what} holds no files that can be read as rows.") from error
    except (errors.HFValidationError, errors.OfflineModeIsEnabled, FileNotFoundError) as error:
        raise RequestError(f"{what}: {error}") from error
    except (DatasetsError, ValueError, StopIteration) as error:
        # `datasets` wraps whatever went wrong while it built the rows, a lost connection too.
        if isinstance(error.__cause__, errors.HTTPError | OSError):
            raise TransientError(f"{what}: the Hub could not be reached: {error.__cause__}") from error
        raise RequestError(f"{what}: {error if str(error) else 'a file in it is empty'}") from error
    except (errors.HTTPError, OSError) as error:  # the first is httpx's: no connection, a time-out
        raise TransientError(f"{what}: the Hub could not be reached: {error}") from error
