"""A file of JSON lines that each belong to a step."""

import json
from typing import Any

from pipeline.storage import Folder


class StepLines:
    """A file whose lines each belong to a step, so that a training that goes on cuts it back.

    On a local disk a line is there as soon as it is added; an object store gets the file whole, by
    `flush`.

    Args:
        folder: of the training.
        name: of the file; there is none until there is a line.
        step: the last whose lines stay.
    """

    def __init__(self, folder: Folder, name: str, step: int) -> None:
        self._folder, self._name = folder, name
        text = folder.read(name).decode() if folder.size(name) is not None else ""
        whole = [line for line in text.splitlines() if line.endswith("}")]
        self._lines = [line for line in whole if json.loads(line)["step"] <= step]
        self.flush()

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Add a line."""
        self._lines.append(json.dumps({"step": step} | values, ensure_ascii=False))
        if self._folder.is_local:
            with open(f"{self._folder.path}/{self._name}", "a", encoding="utf-8") as file:
                file.write(self._lines[-1] + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines."""
        return [json.loads(line) for line in self._lines]

    def flush(self) -> None:
        """Have all lines in the file."""
        if self._lines or self._folder.size(self._name) is not None:
            text = "".join(f"{line}\n" for line in self._lines)
            self._folder.publish(self._name, text.encode())
