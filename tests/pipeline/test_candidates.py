"""What competes for a picture: the web's captions as they are, written ones cleaned likewise."""

import pytest

from pipeline.accounting import Account
from pipeline.candidates import (
    candidate_rows,
    candidates_of,
    caption_account,
    filters_of_written,
    repeats,
    texts_to_score,
    unscored,
    with_scores,
)
from pipeline.schemas import CANDIDATES


def caption(text: str, status: str = "kept", source: str = "web") -> dict:
    return {"text": text, "source": source, "status": status}


WEB = [caption("A red boat"), caption("IMG_1", "rejected:file_name"), caption("", "rejected:empty")]


def statuses(written: list[str], earlier: list[dict] = WEB, filters: str = "none") -> list[str]:
    [row] = candidates_of([earlier], [written], filters_of_written(filters))
    assert all(its["source"] == "synthetic" for its in row[len(earlier) :])
    return [its["status"] for its in row[len(earlier) :]]


def test_what_was_written_is_cleaned_and_the_webs_captions_stay_as_they_are():
    written = [" a  green\tboat", "a GREEN boat", "a red boat", " ", "\x00", "img_1", "a sea"]
    rows = candidates_of([WEB, []], [written, ["a sea"]], ())
    assert [(its["text"], its["status"]) for its in rows[0]] == [
        ("A red boat", "kept"),
        ("IMG_1", "rejected:file_name"),
        ("", "rejected:empty"),
        ("a green boat", "kept"),
        ("a GREEN boat", "rejected:duplicate"),
        ("a red boat", "rejected:duplicate"),
        ("", "rejected:empty"),
        ("", "rejected:empty"),
        ("img_1", "rejected:duplicate"),
        ("a sea", "kept"),
    ]
    assert [its["source"] for its in rows[0]] == ["web"] * 3 + ["synthetic"] * 7
    assert all(its["scores"] == [] for row in rows for its in row)
    assert [its["status"] for its in rows[1]] == ["kept"]  # another picture's is no duplicate


def test_filters_judge_what_was_written_by_itself():
    written = ["click here to enlarge", "a boat", "1234 567", "b"]
    assert statuses(written, filters="default") == [
        "rejected:boilerplate",
        "kept",
        "rejected:few_letters",
        "rejected:too_short",
    ]
    assert statuses(written) == ["kept"] * 4
    assert statuses(["a boat"], filters="strict") == ["rejected:too_short"]


def test_a_later_round_lets_the_web_compete_again_and_keeps_what_it_chose():
    earlier = [
        caption("by hand", "rejected:below_threshold"),
        caption("spam.jpg", "rejected:file_name"),
        caption("a boat", "rejected:not_best", "synthetic"),
        caption("a ship", "kept", "synthetic"),
        caption("a a a a", "rejected:repeats", "synthetic"),
    ]
    [row] = candidates_of([earlier], [["A ship", "a boat"]], ())
    assert [(its["text"], its["source"], its["status"]) for its in row] == [
        ("by hand", "web", "kept"),
        ("spam.jpg", "web", "rejected:file_name"),
        ("a ship", "synthetic", "kept"),
        ("A ship", "synthetic", "rejected:duplicate"),
        ("a boat", "synthetic", "kept"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "no no no",
        "A dog, a dog. A DOG and more words that are not the same",
        "two cats and two dogs and two cats and two dogs and two cats and two dogs and",
        "bookbookbook",
        "a singinginginging",
        "aaaaaaaa",
    ],
)
def test_three_times_the_same_in_a_row_is_repeating(text):
    assert repeats(text)
    assert statuses([text]) == ["rejected:repeats"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "no no",
        "a dog and a cat and a dog",
        "a red boat, a red boat and a blue boat",  # twice
        "www.boats.com has a red boat",  # three characters of many
        "the cat, the catfish, the category",
    ],
)
def test_what_is_merely_alike_is_not(text):
    assert not repeats(text)


def test_judges_see_what_the_web_said_and_what_passed_and_their_scores_come_back_in_place():
    [row] = candidates_of([WEB], [["a ship", "A ship", "a sea"]], ())
    assert texts_to_score(row) == ["A red boat", "IMG_1", "a ship", "a sea"]
    row = with_scores(
        row, "stage1:0123456789ab", [(0.1, 0.5), (0.2, 0.25), (0.3, 1.0), (-0.5, 0.0)]
    )
    row = with_scores(row, "clip:small", [(0.5, None), (0.75, None), (1.0, None), (0.0, None)])
    assert [[tuple(score.values()) for score in its["scores"]] for its in row] == [
        [("stage1:0123456789ab", 0.1, 0.5), ("clip:small", 0.5, None)],
        [("stage1:0123456789ab", 0.2, 0.25), ("clip:small", 0.75, None)],
        [],
        [("stage1:0123456789ab", 0.3, 1.0), ("clip:small", 1.0, None)],
        [],
        [("stage1:0123456789ab", -0.5, 0.0), ("clip:small", 0.0, None)],
    ]
    with pytest.raises(ValueError, match="3 scores of clip:small for 4 captions"):
        with_scores(row, "clip:small", [(0.5, None)] * 3)


def test_rows_of_candidates_have_their_schema_and_account():
    [row] = candidates_of([WEB], [["a ship", "A ship"]], ())
    row = with_scores(row, "clip:small", [(0.5, None), (0.75, None), (1.0, None)])
    uids = [bytes([number] * 16) for number in range(3)]
    table = candidate_rows(uids, [row, None, unscored(WEB)], ["train", None, "test"])
    assert table.schema.equals(CANDIDATES)
    held_out = [its | {"scores": []} for its in WEB]
    assert table.column("captions").to_pylist() == [row, None, held_out]
    dropped = {"rejected:duplicate": 1, "rejected:empty": 2, "rejected:file_name": 2}
    assert caption_account(table) == Account(8, 3, dropped)
    assert unscored(None) is None
