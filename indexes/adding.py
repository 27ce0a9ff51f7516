"""Adding pictures to an index: an index of their own within its folder, which it then names.

An addition is made by the very code that makes an index, and goes on after a kill as one does. It
counts from the moment on when index.json of the whole is published anew; nothing else of what was
there is written. Additions come one after the other: whoever adds holds the lock of the index.
"""

from dataclasses import dataclass, replace

from indexes.gathering import count_wanted
from indexes.known import Known
from indexes.parts import Part, read_parts
from indexes.sources import Sources
from indexes.storage import ADDED, INDEX, Added, read_manifest, unnamed_additions
from pipeline.dataset import DRAFT
from pipeline.errors import ConfigError, DatasetError
from pipeline.lineage import Lineage
from pipeline.storage import Folder


@dataclass(frozen=True)
class Addition:
    """What is to be added."""

    folder: Folder
    """In which it is made."""
    sources: Sources
    """Without what the index has already."""
    num_wanted: int
    """Pictures of the split."""
    num_known: int
    """Those of them that the index has."""


def next_addition(folder: Folder, sources: Sources) -> Addition | None:
    """What an index would get; None where it has all of it.

    Args:
        folder: of the index, whose lock is held.
        sources: what is to be added.

    Raises:
        ConfigError: there is no index, the two do not go together, the split is empty, or something
            else is being added.
        DatasetError: the index is damaged.
    """
    parts = read_parts(folder)
    _check_fits(parts[0], sources)
    if any(not part.lineage.difference(sources.lineage) for part in parts):
        return None
    tables = tuple(table for part in parts for table in part.tables)
    added = replace(sources, known=Known(parts[0].manifest.digest, tables))
    home = folder / ADDED.format(len(parts))
    begun = _begun(home)
    if begun is not None and (difference := begun.difference(added.lineage)):
        raise ConfigError(
            f"{home}: another addition was begun there ({difference}); end it first, or remove it"
        )
    num_wanted, num_known = count_wanted(added)
    if not num_wanted:
        raise ConfigError(f"{sources.pairs.folder}: no picture of split {sources.split!r}")
    if num_known == num_wanted:
        return None
    return Addition(home, added, num_wanted, num_known)


def publish_addition(folder: Folder, addition: Folder) -> None:
    """Have index.json name an addition that is made, after which searches see it.

    Raises:
        DatasetError: one of the two is damaged.
    """
    manifest, made = (read_manifest(home) for home in (folder, addition))
    if manifest is None or made is None:
        raise DatasetError(f"{folder if manifest is None else addition}/{INDEX}: is missing")
    added = (*manifest.added, Added(addition.name, made.digest))
    folder.publish_json(INDEX, replace(manifest, added=added).to_json())
    folder.sweep()


def unfinished_additions(folder: Folder) -> list[Folder]:
    """What lies in an index that is to be added to it, but is not yet; raises DatasetError."""
    manifest = read_manifest(folder)
    return unnamed_additions(folder, [added.folder for added in manifest.added] if manifest else [])


def _check_fits(part: Part, sources: Sources) -> None:
    """Raises ConfigError where what is to be added cannot be searched together with an index."""
    manifest, images = part.manifest, sources.images.folder
    checkpoint = str(sources.checkpoint["digest"])
    if checkpoint != manifest.checkpoint:
        raise ConfigError(
            f"{part.folder} was made with checkpoint {manifest.checkpoint[:16]}, {images} with "
            f"{checkpoint[:16]}"
        )
    shape = manifest.num_queries, manifest.embed_dim
    if shape != sources.shape:
        raise ConfigError(
            "{}: {} vectors of {} values a picture, {}: {} of {}".format(
                part.folder, *shape, images, *sources.shape
            )
        )
    if manifest.has_captions != (sources.texts is not None):
        theirs, ours = ("has", "none") if manifest.has_captions else ("has no", "some")
        raise ConfigError(f"{part.folder}: {theirs} vectors of captions, what is added has {ours}")


def _begun(home: Folder) -> Lineage | None:
    """Of what lies in the folder of the next addition, finished or not."""
    manifest = read_manifest(home)
    if manifest is not None:
        return manifest.lineage
    draft = home.read_json(DRAFT)
    try:
        return None if draft is None else Lineage.from_json(draft["lineage"])
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{home}/{DRAFT}: field missing or wrong: {error}") from error
