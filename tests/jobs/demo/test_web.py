"""The procedural web has the faults it says it has."""

import json
import urllib.error
import urllib.request

import pytest

from jobs.cli import main
from jobs.demo.web import (
    FAULTS,
    make_clean_pages,
    make_pages,
    num_planted,
    served,
    write_urls,
)
from pipeline.dataset import Dataset


def test_pages_depend_on_the_seed_alone_and_hold_every_fault():
    pages = make_pages(1000, 0)
    assert pages == make_pages(1000, 0)
    assert pages != make_pages(1000, 1)
    planted = num_planted(pages)
    for fault, share in FAULTS.items():
        assert abs(planted[fault] - 1000 * share) < 40


def test_duplicates_show_a_page_that_arrives():
    pages = make_pages(1000, 0)
    by_scene = {page.scene: page for page in pages if page.fault != "duplicate"}
    for page in pages:
        if page.fault == "duplicate":
            assert by_scene[page.scene].fault in (None, "wrong_caption", "says_nothing")


def test_clean_pages_have_no_fault_and_show_what_no_other_page_does():
    pages, clean = make_pages(200, 0), make_clean_pages(50, 200, 0)
    assert clean == make_clean_pages(50, 200, 0)
    assert not num_planted(clean)
    assert len({page.path for page in pages + clean}) == 250
    assert not {page.scene for page in pages} & {page.scene for page in clean}
    for page in clean:
        told = page.captions[0]
        assert any(f"{thing.colour} {thing.kind}" in told for thing in page.scene.things)


def test_pages_are_served_with_their_faults():
    pages = make_pages(100, 0)
    first = {}
    for page in pages:
        first.setdefault(page.fault, page)
    with served(pages) as address:
        whole = urllib.request.urlopen(address + first[None].path).read()
        assert whole.startswith(b"\x89PNG")
        assert urllib.request.urlopen(address + first["html"].path).read().startswith(b"<!doctype")
        truncated = urllib.request.urlopen(address + first["truncated"].path).read()
        assert truncated.startswith(b"\x89PNG")
        assert not truncated.endswith(b"IEND\xaeB`\x82")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + first["missing"].path)


@pytest.mark.usefixtures("ray_session")
def test_ingest_calls_each_planted_fault_by_its_name(tmp_path):
    pages = make_pages(120, 0)
    planted = num_planted(pages)
    with served(pages) as address:
        write_urls(pages, address, tmp_path / "urls.jsonl")
        here = ["--allow-host", "127.0.0.1"]
        urls, raw = str(tmp_path / "urls.jsonl"), str(tmp_path / "raw")
        assert main(["ingest", urls, "--out", raw, *here]) == 0
    assert Dataset.open(str(tmp_path / "raw")).manifest.pictures.dropped == {
        "failed:http_404": planted["missing"],
        "failed:not_a_picture": planted["html"],
        "failed:truncated": planted["truncated"],
    }
    line = json.loads((tmp_path / "urls.jsonl").read_text().splitlines()[0])
    assert line["url"].startswith("http://127.0.0.1:")
