"""The procedural web has the faults it says it has."""

import json
import urllib.error
import urllib.request

import pytest

from jobs.cli import main
from jobs.demo.web import FAULTS, make_pages, num_planted, served, write_urls
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
