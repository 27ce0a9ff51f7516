"""What transformers says of a model's weights as it loads them."""

import contextlib
from collections.abc import Iterator

from transformers import logging


@contextlib.contextmanager
def no_report() -> Iterator[None]:
    """Within it transformers logs no table of weights: whoever loads says it in a line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
