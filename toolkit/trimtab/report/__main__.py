"""Rebuild a report: ``python -m trimtab.report multirun/DATE/TIME``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trimtab.errors import TrimtabError
from trimtab.progress import answer, may_go_unread
from trimtab.report import build_report


def main() -> None:
    """Enter from the command line; print the path of the report."""
    parser = argparse.ArgumentParser(prog="python -m trimtab.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a job or of a sweep")
    try:
        with may_go_unread():
            answer(str(build_report(parser.parse_args().folder)))
    except (TrimtabError, OSError) as error:
        print(f"trimtab.report: error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
