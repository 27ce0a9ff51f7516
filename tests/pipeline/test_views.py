"""Views lie side by side, and a picture shows them all, one an epoch."""

import shutil

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.loader import Pairs
from pipeline.views import open_evaluation_view, open_views, view_of


@pytest.fixture(scope="module")
def home(tmp_path_factory, cached):
    """Three views of features, and the pairs beside them; row 41 has no tokens in view 2."""
    home = tmp_path_factory.mktemp("views")
    cached.make_pairs(home / "pairs")
    for view in range(3):
        null = [41] if view == 2 else []
        cached.make_features(home / "features" / f"view-{view}", view=view, null=null)
    cached.make_features(home / "plain")
    return home


def test_both_layouts_are_opened(home):
    views = open_views(str(home / "features"))
    assert [view.folder.name for view in views] == ["view-0", "view-1", "view-2"]
    assert open_evaluation_view(str(home / "features")).digest == views[0].digest
    (plain,) = open_views(str(home / "plain"))
    assert plain.folder.name == "plain"


def test_what_is_no_set_of_views_is_named(tmp_path, home, cached):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        open_views(str(tmp_path / "nowhere"))
    for broken, told in [
        ("gone", "gone: holds view-2, but no view-1"),
        ("unfinished", "unfinished/view-1: no dataset"),
        ("swapped", "swapped/view-1: was made as view 2"),
        ("other", "other/view-0 and .*other/view-1 are features of two encoders"),
        ("shorter", "shorter/view-0 and .*shorter/view-1 do not match"),
    ]:
        folder = shutil.copytree(home / "features", tmp_path / broken)
        if broken == "unfinished":
            (folder / "view-1" / "dataset.json").unlink()
        else:
            shutil.rmtree(folder / "view-1")
        if broken == "swapped":
            (folder / "view-2").rename(folder / "view-1")
        if broken == "other":
            cached.make_features(folder / "view-1", view=1, encoder="b")
        if broken == "shorter":
            cached.make_features(folder / "view-1", view=1, shards=(40, 6))
        with pytest.raises(ConfigError, match=told):
            open_views(str(folder))


def test_a_picture_shows_every_view_in_turn_and_begins_by_chance():
    uids = [np.random.default_rng(n).bytes(16) for n in range(600)]
    shown = np.stack([view_of(uids, epoch, 4, seed=3) for epoch in range(8)])
    for first in (0, 1, 4):
        assert (np.sort(shown[first : first + 4], axis=0) == np.arange(4)[:, None]).all()
    assert np.bincount(shown[0]).min() > 110
    epochs = np.arange(600) % 2
    assert (view_of(uids, epochs, 4, seed=3) == shown[epochs, range(600)]).all()
    assert (view_of(uids, 0, 4, seed=4) != shown[0]).any()
    assert (view_of(uids, 5, 1, seed=3) == 0).all()


def test_a_batch_holds_the_views_of_its_epochs(home, cached):
    views = open_views(str(home / "features"))
    found = Pairs(views, Dataset.open(str(home / "pairs")), "train", seed=9)
    rows = [row for row in range(47) if row % 5 in (0, 1, 3) and row % 4 and row != 41]
    assert len(found) == len(rows)
    epochs = np.arange(len(rows)) % 3
    batch = found.batch(np.arange(len(rows)), np.zeros(len(rows)), epochs)
    shown = view_of([cached.uid(row) for row in rows], epochs, 3, seed=9).tolist()
    assert set(shown) == {0, 1, 2}
    expected = [cached.values([row], view)[0] for row, view in zip(rows, shown, strict=True)]
    assert torch.equal(batch.tokens, torch.from_numpy(np.stack(expected)).half())
    evaluation = torch.from_numpy(cached.values(rows)).half()
    assert torch.equal(found.tokens(range(len(rows))), evaluation)
