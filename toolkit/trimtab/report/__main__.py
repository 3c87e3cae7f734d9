"""Rebuild the report of a sweep, or compare sweeps in one report.

python -m trimtab.report multirun/DATE/TIME
python -m trimtab.report multirun/DATE/TIME multirun/DATE/TIME --out comparison
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trimtab.errors import TrimtabError, on_one_line
from trimtab.progress import answer, may_go_unread
from trimtab.settings import path_of


def main() -> None:
    """Enter from the command line; print the path of the report."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=_folder, nargs="+", help="output folder of a job or of a sweep"
    )
    parser.add_argument(
        "--out", type=_folder,
        help="where the report goes; without it report/ in the folder, or, of several, "
        "outputs/comparison",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="also publish the one sweep as a W&B Report there"
    )
    try:
        with may_go_unread():
            options = parser.parse_args()
            from trimtab.report import build_report

            answer(str(build_report(*options.folder, out=options.out)))
            if options.wandb is not None:
                from trimtab.report.wandb_report import publish

                answer(publish(options.folder, options.wandb))
    except (TrimtabError, OSError) as error:
        print(f"trimtab.report: error: {on_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _folder(name: str) -> Path:
    """Return the folder of an argument; no name at all would be the current one."""
    if not name.strip():
        raise TrimtabError(f"{name!r}: expected a folder, not empty: is a variable unset?")
    return path_of(name)


if __name__ == "__main__":
    main()
