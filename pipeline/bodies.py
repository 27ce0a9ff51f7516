"""Bytes of pictures on their way from where they come to their decoding."""

from collections.abc import Iterable
from tempfile import SpooledTemporaryFile
from typing import IO

IN_MEMORY_BYTES = 4 << 20
"""More lie in a file. A worker has up to 64 bodies at once, of up to `max_download_bytes` each:
4 GB."""


def gathered(chunks: Iterable[bytes | memoryview], num_bytes: int = 0) -> bytes | IO[bytes]:
    """All of these bytes; where they are many, a temporary file of the caller's, at its begin.

    Args:
        chunks: of any size.
        num_bytes: how many there will be, if that is known; then the file begins at once.

    Raises:
        OSError: this machine has no room for them.
    """
    body = SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - may be the caller's
    try:
        if num_bytes > IN_MEMORY_BYTES:
            body.rollover()
        for chunk in chunks:
            body.write(chunk)
        size = body.tell()
        body.seek(0)
        if size > IN_MEMORY_BYTES:
            return body
        with body:
            return body.read()
    except BaseException:
        body.close()
        raise
