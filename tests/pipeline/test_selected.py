"""What a selection left is counted as one counts it by hand, in one part or in several."""

from pipeline.candidates import candidate_rows
from pipeline.selected import Selected, told


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
        [caption("web", "kept", "held out") | {"scores": []}],
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
        "replaced_share": 0.25,
        "synthetic_share": 0.5,
    }
    assert (diversity["web"]["captions"], diversity["web"]["mean_words"]) == (2, 2)
    assert (diversity["synthetic"]["captions"], diversity["synthetic"]["identical_share"]) == (2, 1)
    parts = (Selected.of(table.slice(row, 1)) for row in range(len(rows)))
    assert Selected.total(parts).to_json() == summary | {"diversity": diversity}
    lines = list(told(summary | {"diversity": diversity}))
    assert lines[:4] == [
        "5 of 6 pictures were judged",
        "web captions: 4 on offer, 2 kept, 1 replaced (25.0%), 1 dropped",
        "synthetic captions: 3 on offer, 2 kept, 50.0% of all that are kept",
        "pictures without a caption: 2, of which 1 had none of the web either",
    ]
    assert lines[5] == (
        "kept synthetic captions: 3.0 words, distinct-1 0.5000, distinct-2 0.5000, "
        "100.0% like another one"
    )
