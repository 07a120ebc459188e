"""What the package says of its work, through `logging`: loggers are named by module, like `codegemm.choice`.

INFO: what was compiled, in how many seconds, where it is kept; which kernel a product gets, and why. WARNING: what took
long to compile, so that nobody wonders what a first product waits for.

No handler is added unless $CODEGEMM_LOG asks for one, not even a NullHandler, for that would hide warnings where a
program sets up no logging.
"""

from __future__ import annotations

import logging
import os
import sys

VARIABLE = "CODEGEMM_LOG"
LEVELS = {level.lower(): level for level in ("DEBUG", "INFO", "WARNING", "ERROR")}


class _StandardError(logging.Handler):
    """As it is at the time: a progress bar may have put itself in front."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def set_up() -> None:
    """Print to standard error what $CODEGEMM_LOG asks for: one of `LEVELS` and what is above it.

    A level that is none is told there, too: no program is to end for it.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    logger, handler = logging.getLogger("codegemm"), _StandardError()
    handler.setFormatter(logging.Formatter("codegemm: %(message)s"))
    logger.addHandler(handler)
    if asked.lower() in LEVELS:
        logger.setLevel(LEVELS[asked.lower()])
    else:
        logger.error("%s=%s: must be one of %s", VARIABLE, asked, ", ".join(LEVELS))
