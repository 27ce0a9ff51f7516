"""What a selection left is counted as one counts it by hand, in one part or in several."""

import pytest

from pipeline.candidates import candidate_rows
from pipeline.selected import SUMMARY, Selected, read_summary, told, told_of_candidates
from pipeline.storage import Folder


def caption(source: str, status: str, text: str) -> dict:
    scores = [{"judge": "clip:a", "itc": 0.5, "itm": None}]
    return {"text": text, "source": source, "status": status, "scores": scores}


def test_what_became_of_the_captions_is_counted():
    rejected = "rejected:not_best"
    rows = [
        [caption("web", rejected, "a"), caption("synthetic", "kept", "a red boat")],
        [caption("web", "kept", "a boat"), caption("synthetic", rejected, "b")],
        [caption("web", "kept", "a dog"), caption("synthetic", "kept", "a red boat")],
        [caption("web", "rejected:below_threshold", "d")],
        [caption("web", "rejected:empty", "")],
        None,
        [
            caption("web", "kept", "held out") | {"scores": []},
            caption("synthetic", "kept", "of an earlier round") | {"scores": []},
            caption("synthetic", rejected, "too") | {"scores": []},
        ],
    ]
    table = candidate_rows([bytes([row] * 16) for row in range(7)], rows, ["train"] * 7)
    summary = Selected.of(table).to_json()
    diversity = summary.pop("diversity")
    assert summary == {
        "pictures": 6,
        "judged": 5,
        "without_caption": 2,
        "without_web_caption": 1,
        "web": 4,
        "web_kept": 2,
        "web_replaced": 1,
        "synthetic": 3,
        "synthetic_kept": 2,
        "synthetic_unjudged": 1,
        "replaced_share": 0.25,
        "synthetic_share": 0.5,
    }
    assert (diversity["web"]["captions"], diversity["web"]["mean_words"]) == (2, 2)
    assert (diversity["synthetic"]["captions"], diversity["synthetic"]["identical_share"]) == (2, 1)
    parts = (Selected.of(table.slice(row, 1)) for row in range(len(rows)))
    assert Selected.total(parts).to_json() == summary | {"diversity": diversity}
    lines = list(told(summary | {"diversity": diversity}))
    assert lines[:5] == [
        "5 of 6 pictures were judged",
        "web captions: 4 on offer, 2 kept, 1 replaced (25.0%), 1 dropped",
        "synthetic captions: 3 on offer, 2 kept, 50.0% of all that are kept of judged pictures",
        "synthetic captions of pictures that were not judged: 1 stay kept",
        "pictures without a caption: 2, of which 1 had none of the web either",
    ]
    assert lines[6] == (
        "kept synthetic captions: 3.0 words, distinct-1 0.5000, distinct-2 0.5000, "
        "100.0% like another one"
    )
    assert list(told_of_candidates(summary | {"diversity": diversity})) == [
        "on offer for 5 judged pictures of 6: 4 captions of the web, 3 synthetic ones",
        lines[5].replace("kept", "offered", 1),
        lines[6].replace("kept", "offered", 1),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: None,
        lambda whole: [],
        lambda whole: {name: it for name, it in whole.items() if name != "synthetic_unjudged"},
        lambda whole: whole | {"diversity": 3},
        lambda whole: whole | {"diversity": {"web": whole["diversity"]["web"]}},
        lambda whole: whole | {"diversity": whole["diversity"] | {"synthetic": {"captions": 3}}},
    ],
)
def test_a_summary_that_lacks_a_field_counts_as_none(tmp_path, damage):
    folder, whole = Folder.at(tmp_path), Selected.total([]).to_json()
    assert read_summary(folder) is None
    folder.publish_json(SUMMARY, whole | {"more": 1})
    assert read_summary(folder) == whole | {"more": 1}
    folder.publish_json(SUMMARY, damage(whole))
    assert read_summary(folder) is None
