"""Build the C++ kernels for this machine now, and not when they are first needed.

python -m trimtab_kernels
"""

from __future__ import annotations

import sys

from trimtab_kernels.build import load
from trimtab_kernels.decode_attention.cpu import LIBRARY as DECODE_ATTENTION
from trimtab_kernels.decode_step.cpu import LIBRARY as DECODE_STEP
from trimtab_kernels.sparse_linear.cpu import LIBRARY as SPARSE_LINEAR


def main() -> None:
    """Enter from the command line; exit with 1 where there is no compiler that can build them."""
    for library in (DECODE_STEP, SPARSE_LINEAR, DECODE_ATTENTION):
        try:
            reason = load(library)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
        if reason:
            sys.exit(f"{library.name}: {reason}")
        print(library.path)


if __name__ == "__main__":
    main()
