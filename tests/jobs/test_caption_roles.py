"""Who may write captions and who may judge them, by what the lineages of checkpoints say."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.caption_roles import open_captioner, open_judges, roles_to_tell, tells_match
from model.checkpoint import FILE, Checkpoint
from model.pretrained.clip import Clip
from pipeline.errors import ConfigError
from pipeline.lineage import Lineage
from pipeline.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def trained(tmp_path, unbroken) -> Callable[..., str]:
    """`trained("itc,itm", init=True)`: a checkpoint that says it was trained so."""

    def trained(losses: str, *, init: bool = False) -> str:
        home = tmp_path / f"{losses}-{init}"
        shutil.copytree(unbroken, home)
        frozen = {"init": {"digest": "0" * 64}} if init else {}
        its = Checkpoint.open(str(home))
        frozen = {**its.lineage.frozen, **frozen}
        lineage = Lineage("train-stage1", {"losses": losses}, (), frozen)
        Folder.at(home).publish_json(FILE, replace(its, lineage=lineage).to_json())
        return str(home)

    return trained


def warnings(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_captioner_needs_a_caption_head(trained, caplog):
    for losses in ("itg", "itc,itm,itg"):
        for init in (False, True):
            assert open_captioner(trained(losses, init=init)).stage == 1
    assert not warnings(caplog)
    with pytest.raises(ConfigError, match="itc,itm-False: its caption head was never trained"):
        open_captioner(trained("itc,itm"))
    with caplog.at_level(logging.WARNING):
        open_captioner(trained("itc,itm", init=True))
    assert "itc,itm-True: its last training was not by itg" in caplog.text


def test_a_judge_needs_similarity(trained, caplog):
    captioner = open_captioner(trained("itg", init=True))
    for losses in ("itc", "itc,itm", "itc,itm,itg"):
        for init in (False, True):
            [judge] = open_judges([trained(losses, init=init)], None)
            assert tells_match(judge) == (losses != "itc")
    assert not warnings(caplog)
    for losses, init in (("itg", False), ("itm", False), ("itm,itg", False), ("itg", True)):
        location = trained(losses, init=init) if (losses, init) != ("itg", True) else None
        with pytest.raises(ConfigError, match=r"judge: .* was not trained by itc"):
            open_judges([location or str(captioner.folder)], captioner)
    with caplog.at_level(logging.WARNING):
        [judge] = open_judges([trained("itm", init=True)], captioner)
    assert "its last training was not by itc: mind its similarities" in caplog.text
    assert tells_match(judge)


def test_a_captioner_that_cannot_judge_needs_a_judge(trained):
    captioner = open_captioner(trained("itg", init=True))
    with pytest.raises(ConfigError, match=r"captioner: .*was not trained by itc.*name a --judge"):
        open_judges([], captioner)


@pytest.mark.parametrize(
    ("judges", "own"),
    [("none", [True]), ("captioner", [True]), ("copy", [False, True]), ("other", [False])],
)
def test_a_captioner_that_judges_itself_is_warned_about_and_told(
    tmp_path, unbroken, other, caplog, judges, own
):
    """By its weights: a copy that was made otherwise is still the captioner."""
    copy = shutil.copytree(unbroken, tmp_path / "copy")
    its = Checkpoint.open(str(copy))
    Folder.at(copy).publish_json(
        FILE, replace(its, lineage=replace(its.lineage, job="import")).to_json()
    )
    named = {"none": [], "captioner": [unbroken], "copy": [other, copy], "other": [other]}
    captioner = Checkpoint.open(str(unbroken))
    with caplog.at_level(logging.WARNING):
        chosen = open_judges([*map(str, named[judges])], captioner)
    assert ("forgives it" in caplog.text) == any(own)
    told = roles_to_tell(captioner, chosen)
    assert [its["is_captioner"] for its in told["judges"]] == own
    assert [its["digest"] for its in told["judges"]] == [judge.digest for judge in chosen]
    assert told["captioner"] == {"digest": captioner.digest, "stage": 1}


def test_a_judge_alone_is_nobodys_captioner(other, save_clip, tmp_path, caplog):
    clip: Path = save_clip(tmp_path / "small-clip")
    judges = open_judges([str(other), f"clip:{clip}"], None)
    assert [tells_match(judge) for judge in judges] == [True, False]
    told = roles_to_tell(None, judges)
    assert [its["name"] for its in told["judges"]][1] == "clip:small-clip"
    assert told["judges"][1]["digest"] == Clip.of(str(clip)).digest
    assert not any(its["is_captioner"] for its in told["judges"])
    assert "captioner" not in told
    assert not warnings(caplog)
