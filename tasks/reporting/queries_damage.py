"""Why a file of results could not be read, and what to do: a full disk, or a file that was replaced, is no damage."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.reporting.queries_files import ANEW

if TYPE_CHECKING:
    import duckdb


def fault_of(error: "duckdb.Error", path: Path) -> str:
    """In words. DuckDB calls damage an IO error at times, and a disk's fault too: then another reader decides."""
    import duckdb

    said = str(error).splitlines()[0]
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"it takes more memory than there is for it ({said})"
    of_the_file = (duckdb.InvalidInputException, duckdb.ConversionException)
    if type(error) is duckdb.Error or isinstance(error, of_the_file) or _is_damaged(path):
        return f"it is damaged ({said}); {ANEW}"
    return f"it could not be read this time ({said}); build the dashboard again"


def _is_damaged(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (pa.ArrowException, OSError) as error:
        return not getattr(error, "errno", None)  # those with a number are the machine's
    return False
