"""`viaduct report`: one page of all that a run made, in one file that asks for nothing else.

contents    what is in a run's folder: datasets, trainings, evaluations, times
examples    some of what ingest and curate found
competition the captions that competed for pictures, and which were chosen
gallery     the pictures that were captioned and found
figures     curves and bars as SVG, in the page's own colours
plots       which metrics go into which figure
page        the contents as HTML, through report.html.jinja
"""

import os
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.report.competition import read_competitions
from jobs.report.contents import read_run
from jobs.report.examples import read_examples
from jobs.report.gallery import read_gallery
from jobs.report.page import render
from pipeline.errors import ConfigError
from pipeline.storage import Folder

_FILE = "report.html"
_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML page of all that a run made, pictures and figures in it.

    Finds datasets, trainings, evaluations, captions and searches in the run's folder and up to two
    levels below it; what is absent is left out. Twelve examples show what ingest and curate found:
    duplicates beside what was kept, rejected captions with their pictures, rows that were lost.
    Where captions were written and judged (`viaduct capfilt`), pictures show all that competed.
    """

    run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder or URI with whatever was made, such as the demo's, or a single dataset."""

    out: str | None = None
    """File to write; `report.html` in RUN by default."""

    max_pictures: int = 48
    """Pictures shown with their captions, and searches, at most."""

    max_pairs: int = 40
    """Pictures shown with the captions that competed for them, at most, of each selection."""

    def __post_init__(self) -> None:
        for name in ("max_pictures", "max_pairs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")

    def run(self) -> None:
        """Write the page and print where it is.

        Raises:
            ConfigError: there is nothing to report, or the page cannot be written.
            DatasetError: what is reported is damaged.
        """
        folder = Folder.at(self.run_folder)
        if not folder.exists():
            raise ConfigError(f"{folder}: no such folder")
        contents = read_run(folder)
        examples = read_examples(contents.datasets, _EXAMPLES)
        competitions = read_competitions(contents, self.max_pairs)
        gallery = read_gallery(folder, contents.places, self.max_pictures)
        if contents.is_empty and gallery.is_empty:
            raise ConfigError(f"{folder}: holds nothing to report, nor do the folders below it")
        home, name = (folder, _FILE) if self.out is None else _target(self.out)
        page = render(contents, examples, competitions, gallery)
        home.publish(name, page.encode())
        sys.stdout.write(f"{home}/{name}\n")


def _target(out: str) -> tuple[Folder, str]:
    """The folder and the name of the file to write; raises ConfigError where it is a folder."""
    place = Folder.at(out)
    if place.exists():
        raise ConfigError(f"out: {place}: is a folder; name a file")
    parent = out.rpartition("/")[0] if "://" in out else os.path.dirname(os.path.abspath(out))
    return Folder.at(parent), place.name
