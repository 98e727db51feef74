"""``python -m support.trapped_worker PARENT_PID``: a fleet's worker that can be stopped at a phase (trapped.py)."""

from support.trapped import run_worker

if __name__ == "__main__":
    run_worker()
