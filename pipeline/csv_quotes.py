"""Quotes of a csv: where its rows end, and which quote is never closed.

To Arrow's reader all that follows such a quote is a single value.
"""

import codecs

_MANY_BREAKS = 100
"""Line breaks in a value that are more likely the ends of rows."""

_Place = tuple[int, int]
"""A line, from 1, and a byte, from 0."""


class QuotedValues:
    """Follows the quotes of a csv along its bytes, by the rules of Arrow's reader (RFC 4180).

    A quote opens a value where a value begins, and is a character like others elsewhere. The next
    one closes it, but two in a row are a quote within the value.
    """

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter.encode()
        self._ends = (self._delimiter, b"\n", b"\r")
        self._open: _Place | None = None
        """The quote that opened the value which is not closed yet."""
        self._may_be_closed = False
        """The last byte was a quote within the value; what follows says what it meant."""
        self._last = b"\n"
        """The byte before those that come."""
        self._num_bytes = 0
        """Before those that come."""
        self._line, self._counted = 1, 0
        """The line of a place among those that came last."""
        self._row_end = 0
        self.num_doubtful, self.first_doubtful_line = 0, 0
        """Values that may have swallowed rows: over very many lines, or over several and with text
        behind the quote that closes them, as where it was meant to open a later row's value."""

    @property
    def open_quote(self) -> str | None:
        """What names the quote that opened the value which is not closed yet."""
        return (
            f"the quote in line {self._open[0]:,}, byte {self._open[1]:,}," if self._open else None
        )

    def follow(self, data: bytes) -> int:
        """Go on over the next bytes, at least one; the first begin as the table does.

        Returns:
            The place behind the last row that ends among them; 0 where none does.
        """
        if not self._num_bytes and data.startswith(codecs.BOM_UTF8):  # a value begins behind it
            size = len(codecs.BOM_UTF8)
            data = self._delimiter * size + data[size:]
        at = self._counted = self._row_end = 0
        while at < len(data):
            at = self._within(data, at, self._open) if self._open else self._outside(data, at)
        self._count_lines(data, len(data))
        self._last = data[-1:]
        self._num_bytes += len(data)
        return self._row_end

    def end(self) -> None:
        """Hear that nothing comes any more.

        Raises:
            ValueError: a quote was not closed.
        """
        if self._open and not self._may_be_closed:
            raise ValueError(f"{self.open_quote} is never closed")

    def _outside(self, data: bytes, at: int) -> int:
        """The place behind the next quote that opens a value, or the end."""
        begin = at
        while (at := data.find(b'"', at)) >= 0:
            if (data[at - 1 : at] or self._last) in self._ends:
                self._count_lines(data, at)
                self._open = self._line, self._num_bytes + at
                self._end_row(data, begin, at)
                return at + 1
            at += 1
        self._end_row(data, begin, len(data))
        return len(data)

    def _end_row(self, data: bytes, begin: int, end: int) -> None:
        last = max(data.rfind(b"\n", begin, end), data.rfind(b"\r", begin, end))
        self._row_end = max(self._row_end, last + 1)

    def _within(self, data: bytes, at: int, begin: _Place) -> int:
        """The place behind the quote that closes the value, or the end."""
        if self._may_be_closed:
            self._may_be_closed = False
            if data[:1] != b'"':
                return self._closed(data, 0, begin)
            at = 1
        while (at := data.find(b'"', at)) >= 0:
            after = data[at + 1 : at + 2]
            if not after:
                self._may_be_closed = True
                break
            if after != b'"':
                return self._closed(data, at + 1, begin)
            at += 2
        return len(data)

    def _closed(self, data: bytes, at: int, begin: _Place) -> int:
        """`at`, behind the quote that closed the value."""
        self._count_lines(data, at)
        breaks = self._line - begin[0]
        if breaks >= _MANY_BREAKS or (breaks and data[at : at + 1] not in self._ends):
            self.num_doubtful += 1
            self.first_doubtful_line = self.first_doubtful_line or begin[0]
        self._open = None
        return at

    def _count_lines(self, data: bytes, at: int) -> None:
        self._line += data.count(b"\n", self._counted, at)
        self._counted = at
