"""Who must act when something goes wrong. A bad pair is no error: it is a drop with a reason."""


class ViaductError(Exception):
    """Anything Viaduct raises on purpose; its text is one line that names file, field and value."""


class ConfigError(ViaductError):
    """The user must act: a wrong option, a missing file, a full disk. Never retried."""


class DatasetError(ViaductError):
    """A stored file breaks its record. Its text names the file; the shard is set aside."""
