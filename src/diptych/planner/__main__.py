"""``python -m diptych.planner``."""

from diptych.planner.commands import main

if __name__ == "__main__":
    main()
