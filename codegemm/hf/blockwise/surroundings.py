"""What is changed around the work for its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from codegemm.engines.cpu.library import get_num_threads, set_num_threads
from codegemm.measuring import conditions


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Sums are computed by one thread, for by several they could come out otherwise; the quantiser's rows by as many as
    there are, for they don't depend on each other."""
    count = get_num_threads()
    with conditions.threads(1):
        set_num_threads(count)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """transformers draws no bar for each block that is read."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
