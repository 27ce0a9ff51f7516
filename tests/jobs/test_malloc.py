"""With glibc, what a step frees stays with the process; another C library is left as it is."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.malloc import keep_memory

MEASURED = """
import resource, sys
import torch
from jobs.malloc import keep_memory

if sys.argv[1] == "keep":
    keep_memory()
torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Of twenty tensors of 64 MiB, one after another, in a process of its own."""
    return int(
        subprocess.run(
            [sys.executable, "-c", MEASURED, how],
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_was_freed_is_used_again():
    assert page_faults("keep") < page_faults("as it comes") / 2


@pytest.mark.parametrize("library", [OSError("no libc.so.6"), object()])
def test_another_c_library_is_left_as_it_is(monkeypatch, library):
    def load(name: str) -> object:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    keep_memory()
