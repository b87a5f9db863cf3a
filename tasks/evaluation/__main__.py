"""`python -m tasks.evaluation job.json`: score cells in a process of its own."""

from infra import stage_process
from tasks.evaluation.engine import run

if __name__ == "__main__":
    stage_process.main(run)
