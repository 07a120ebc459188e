"""`python -m codegemm.hf.lm_eval ...`: the command line of lm-eval, with this package's models known to transformers.

lm-eval itself would load them as dense layers of random numbers, with no more than a warning. Folders of AQLM's are for
`codegemm convert` first: lm-eval opens them by transformers' own classes, which know nothing of these here.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Hand everything to lm-eval: its arguments, its output, its exit status."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        sys.exit(f"lm-eval can't be imported ({error}): pip install lm-eval")
    cli_evaluate()


if __name__ == "__main__":
    main()
