"""Folders of a dataset, on a local disk or an object store, and how a file is published in them.

Local files appear by rename, objects by one finished upload: nobody ever sees half a file.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import ConfigError, DatasetError

TEMPORARY = ".tmp-"
"""How the names of unfinished local files begin; `Folder.sweep` removes them."""


_TRIES, _PAUSE_S = 4, 0.05
"""To get a lock: whoever looks at it holds it for a moment."""


_READS, _READ_AGAIN_S = 4, 0.1
"""Of a small object that looks damaged, before it is."""


class Locked(ConfigError):
    """Somebody else holds a lock."""

    def __init__(self, folder: "Folder", note: str) -> None:
        super().__init__(f"{folder}: is locked ({note})")
        self.note = note


def below(location: str, name: str) -> str:
    """Path or URI of what is in a folder; the options of a URI stay."""
    path, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


@dataclass(frozen=True)
class Folder:
    """A folder on one of pyarrow's filesystems; it need not exist yet."""

    fs: pafs.FileSystem
    path: str
    """Path within `fs`, absolute, without a trailing slash."""

    @staticmethod
    def at(location: str | os.PathLike[str]) -> "Folder":
        """Make a folder of a local path or a URI (`s3://`, `gs://`, `file://`).

        Raises:
            ConfigError: the URI names no filesystem that pyarrow knows.
        """
        text = os.fspath(location)
        if "://" not in text:
            return Folder(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        if text.startswith("s3://") and "allow_delayed_open" not in text:
            # A small file is then one request instead of a multipart upload's three.
            text += ("&" if "?" in text else "?") + "allow_delayed_open=true"
        try:
            fs, path = pafs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{text}: cannot be opened: {error}") from error
        return Folder(fs, path.rstrip("/"))

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.fs.type_name}://{self.path}"

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.fs, f"{self.path}/{name}")

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is no such file."""
        info = self.fs.get_file_info(f"{self.path}/{name}")
        return info.size if info.type == pafs.FileType.File else None

    def exists(self) -> bool:
        return self.fs.get_file_info(self.path).type == pafs.FileType.Directory

    def files(self) -> list[str]:
        """Names of the files directly in the folder, sorted; none if there is no folder."""
        return sorted(self.infos())

    def infos(self) -> dict[str, pafs.FileInfo]:
        """Size and time of the files directly in the folder, by name; none without a folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        infos = self.fs.get_file_info(selector)
        return {info.base_name: info for info in infos if info.type == pafs.FileType.File}

    def entries(self) -> list[str]:
        """Names of all that is directly in the folder, sorted; none if there is no folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def create(self) -> None:
        """Create the folder and its parents, unless they are there."""
        with clear_errors(self):
            self.fs.create_dir(self.path, recursive=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it, if it is there."""
        if self.exists():
            self.fs.delete_dir(self.path)

    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.size(name) is not None:
            self.fs.delete_file(f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """The whole of a file."""
        with self.fs.open_input_file(f"{self.path}/{name}") as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        """A JSON file's content, or None if there is no such file.

        An object is asked for its size, then for so much of it, and may be another, or gone,
        between the two: what looks damaged is read again.

        Raises:
            DatasetError: it is damaged.
        """
        left = 1 if self.is_local else _READS
        while self.size(name) is not None:
            left -= 1
            try:
                return json.loads(self.read(name))
            except ValueError as error:
                if not left:
                    raise DatasetError(f"{self}/{name}: not JSON: {error}") from error
            except OSError:
                if not left:
                    raise
            time.sleep(_READ_AGAIN_S)
        return None

    def publish(self, name: str, content: bytes) -> None:
        """Write a small file whole, in place of any that was there."""
        if self.is_local:
            with self.temporary() as file:
                file.stream.write(content)
                file.publish(name)
            return
        with clear_errors(self), self.fs.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(content)

    def publish_json(self, name: str, content: Any) -> None:
        self.publish(name, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def open_arrow(
        self, name: str, columns: Sequence[str] | None = None
    ) -> pa.ipc.RecordBatchFileReader:
        """Open an IPC file: memory-mapped where it is local, through the filesystem elsewhere.

        Of these columns alone, where they are given; no others are read then.
        """
        path = f"{self.path}/{name}"
        source = pa.memory_map(path) if self.is_local else self.fs.open_input_file(path)
        reader = pa.ipc.open_file(source)
        if columns is None:
            return reader
        numbers = [reader.schema.get_field_index(column) for column in columns]
        return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=numbers))

    def digest(self, name: str) -> str:
        """SHA-256 of a file's bytes, in hexadecimal."""
        sha = hashlib.sha256()
        with self.fs.open_input_stream(f"{self.path}/{name}") as stream:
            while chunk := stream.read(1 << 20):
                sha.update(chunk)
        return sha.hexdigest()

    @contextlib.contextmanager
    def temporary(self) -> Iterator["TemporaryFile"]:
        """A file to write; it vanishes at the end unless it was published.

        It lies in the folder itself where that is local, so that publishing is a rename.

        Raises:
            ConfigError: the disk is full, or the folder cannot be written.
        """
        with clear_errors(self):
            home = self.path if self.is_local else tempfile.gettempdir()
            if self.is_local:
                self.create()
            path = f"{home}/{TEMPORARY}{uuid.uuid4().hex}"
            try:
                with open(path, "wb") as raw:
                    yield TemporaryFile(self, path, _Hashed(raw))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def sweep(self, *below: str) -> None:
        """Remove what killed attempts left here; only while no other job writes here.

        Args:
            below: subfolders to sweep too.
        """
        for folder in (self, *(self / name for name in below)):
            for name in folder.files():
                if name.startswith(TEMPORARY):
                    folder.remove_file(name)

    @contextlib.contextmanager
    def locked(self, name: str, *, note: str | None = None) -> Iterator[None]:
        """Hold a lock that the operating system frees when its holder dies; local folders only.

        Args:
            name: of the lock file.
            note: what to write into it, for whoever is refused; None waits instead.

        Raises:
            Locked: somebody else holds the lock, and a note is given.
        """
        if not self.is_local:
            yield
            return
        import fcntl

        self.create()
        with open(f"{self.path}/{name}", "a+") as file:
            for tries_left in reversed(range(_TRIES)):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if note is None else fcntl.LOCK_NB))
                    break
                except BlockingIOError:
                    if not tries_left:
                        file.seek(0)
                        raise Locked(self, file.read()) from None
                    time.sleep(_PAUSE_S)
            if note is not None:
                file.truncate(0)
                file.write(note)
                file.flush()
            yield

    @contextlib.contextmanager
    def locked_number(self, name: str, number: int, patience_s: float) -> Iterator[bool]:
        """Keep other processes from a number for a moment; local folders only.

        Whoever holds it may have been halted, with its machine cut off from the network, and
        would never let go of it.

        Args:
            name: of the file whose locks these are: its byte of that number is locked.
            number: from 0.
            patience_s: how long to wait for another process.

        Yields:
            Whether the lock is held; False where the other one still has it.
        """
        if not self.is_local:
            yield True
            return
        import fcntl

        self.create()
        deadline = time.monotonic() + patience_s
        with open(f"{self.path}/{name}", "a") as file:
            held = False
            while not held:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                    held = True
                except (BlockingIOError, PermissionError):  # which of them depends on the system
                    if time.monotonic() > deadline:
                        break
                    time.sleep(_PAUSE_S)
            yield held

    def note_of_lock(self, name: str) -> str | None:
        """The note of whoever holds a lock; None where nobody does, or there is no such lock."""
        import fcntl

        try:
            with open(f"{self.path}/{name}") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read()
        except (FileNotFoundError, NotADirectoryError):
            pass
        return None


class _Hashed(io.RawIOBase):
    """Passes bytes on to a file and keeps their count and SHA-256."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.sha = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.raw.write(view)
        self.sha.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.bytes


@dataclass(frozen=True)
class TemporaryFile:
    """A file being written: `stream` takes its bytes, `publish` makes it visible."""

    folder: Folder
    path: str
    stream: _Hashed

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        return self.stream.sha.hexdigest()

    def sync(self) -> None:
        """Have the bytes on the disk before anything names them."""
        self.stream.raw.flush()
        os.fsync(self.stream.raw.fileno())

    def publish(self, name: str) -> None:
        """Give the file its name: a rename where the folder is local, else one upload."""
        self.sync()
        if self.folder.is_local:
            os.replace(self.path, f"{self.folder.path}/{name}")
        else:
            target = f"{self.folder.path}/{name}"
            pafs.copy_files(self.path, target, destination_filesystem=self.folder.fs)


_IN_THE_WAY = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)


@contextlib.contextmanager
def clear_errors(folder: Folder) -> Iterator[None]:
    """Turn what only the user can mend (a full disk, no permission) into a ConfigError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(f"{folder}: the disk is full; what was committed stays") from error
        if error.errno in _IN_THE_WAY:
            where = error.filename2 or folder  # a rename names the file that it was to be
            raise ConfigError(f"{where}: cannot be written: {error.strerror}") from error
        raise
