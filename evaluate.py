"""Measure a stack against the unmodified model: ``python evaluate.py methods=larosa``."""

import sys
from importlib import import_module
from pathlib import Path

before = list(sys.path)
# Trimtab is installed: what else is in this folder must not be imported by mistake.
sys.path[:] = [path for path in before if Path(path).resolve() != Path(__file__).parent]

if __name__ == "__main__":
    from trimtab.commands.evaluate import main

    main()
elif __name__ == "evaluate":
    # Whoever imports this name with the checkout on the path wants Hugging Face's package.
    del sys.modules[__name__]
    try:
        import_module(__name__)
    finally:
        sys.path[:] = before
