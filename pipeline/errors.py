"""Who must act when something goes wrong. A bad pair is no error: it is a drop with a reason."""


class ViaductError(Exception):
    """Anything Viaduct raises on purpose; its text is one line that names file, field and value."""


class ConfigError(ViaductError):
    """The user must act: a wrong option, a missing file, a full disk. Never retried."""


class DatasetError(ViaductError):
    """A stored file breaks its record. Its text names the file; the shard is set aside."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
