"""Selection: thresholds, then the best of a picture, then the budget, against a slow reference."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.candidates import candidate_rows, unscored
from pipeline.errors import ConfigError, DatasetError
from pipeline.schemas import CANDIDATES
from pipeline.selection import (
    SelectionConfig,
    Written,
    choose,
    judges_of,
    over_budget,
    with_statuses,
)

BOTH = {"clip:a": False, "stage1:b": True}


def caption(source: str, itm: float | None, itc: float, status: str = "kept", text: str = "x"):
    scores = [
        {"judge": "clip:a", "itc": -itc, "itm": None},
        {"judge": "stage1:b", "itc": itc, "itm": itm},
    ]
    return {"text": text, "source": source, "status": status, "scores": scores}


def table_of(*rows: list | None, first: int = 0) -> pa.Table:
    uids = [(first + number).to_bytes(16, "big") for number in range(len(rows))]
    return candidate_rows(uids, rows, ["train"] * len(rows))


def chosen(table: pa.Table, judges=BOTH, **options) -> list[list[str] | None]:
    """The statuses of each row's captions, without `rejected:`."""
    options = {"judge": "stage1:b", "top_k": None, **options}
    config = SelectionConfig(**options).resolved(judges)
    choice = choose(table, config)
    statuses = choice.statuses
    if config.synthetic_share is not None:
        [over] = over_budget([choice.written], choice.num_web, config.synthetic_share)
        statuses = choice.without(over)
    after = with_statuses(table, statuses)
    assert after.schema.equals(CANDIDATES)
    rows = after.column("captions").to_pylist()
    for row, was in zip(rows, table.column("captions").to_pylist(), strict=True):  # all else stays
        assert [c | {"status": ""} for c in row or []] == [c | {"status": ""} for c in was or []]
    assert after.drop_columns(["captions"]).equals(table.drop_columns(["captions"]))
    return [row and [c["status"].removeprefix("rejected:") for c in row] for row in rows]


ROW = [
    caption("web", 0.5, 0.25),
    caption("web", 0.99, 0.9, "rejected:file_name"),
    caption("synthetic", 0.9, 0.5),
    caption("synthetic", 0.9, 0.75),
    caption("synthetic", 0.1, 1.0),
    caption("synthetic", 0.9, 0.75),
]


def test_the_best_of_a_picture_are_kept_with_ties_by_the_other_score_and_then_by_place():
    best = {
        1: ["not_best", "file_name", "not_best", "kept", "not_best", "not_best"],
        2: ["not_best", "file_name", "not_best", "kept", "not_best", "kept"],
        4: ["kept", "file_name", "kept", "kept", "not_best", "kept"],
        None: ["kept", "file_name", "kept", "kept", "kept", "kept"],
    }
    for top_k, expected in best.items():
        assert chosen(table_of(ROW), top_k=top_k) == [expected]
    by_similarity = ["not_best", "file_name", "not_best", "kept", "kept", "not_best"]
    assert chosen(table_of(ROW), top_k=2, by="itc") == [by_similarity]
    clip = ["kept", "file_name", "kept", "not_best", "not_best", "not_best"]  # of the negated one
    assert chosen(table_of(ROW), top_k=2, judge="clip:a") == [clip]


def test_web_and_written_captions_have_thresholds_of_their_own():
    thresholds = {"web_threshold": 0.51, "synthetic_threshold": 0.9}
    expected = ["below_threshold", "file_name", "kept", "kept", "below_threshold", "kept"]
    assert chosen(table_of(ROW), **thresholds) == [expected]
    similar = ["below_threshold", "file_name", *["below_threshold"] * 2, "kept", "below_threshold"]
    assert chosen(table_of(ROW), **thresholds, by="itc") == [similar]
    clip = ["kept", "file_name", "kept", "below_threshold", "below_threshold", "below_threshold"]
    assert chosen(table_of(ROW), judge="clip:a", synthetic_threshold=-0.6) == [clip]
    first = ["below_threshold", "file_name", "not_best", "kept", "below_threshold", "not_best"]
    assert chosen(table_of(ROW), **thresholds, top_k=1) == [first]


def test_beyond_the_budget_the_lowest_go_over_the_whole_dataset():
    rows = [
        [caption("web", 0.5, 0), caption("synthetic", 0.75, 0)],
        [caption("web", 0.5, 0), caption("synthetic", 0.25, 0.5), caption("synthetic", 0.25, 0)],
        [caption("web", 0.5, 0), caption("synthetic", 0.25, 0.5), caption("synthetic", 1, 0)],
        [caption("synthetic", 0.125, 0)],
    ]
    share = {  # of written ones beside three of the web
        0.5: [["kept"] * 2, ["kept", "kept", "over_budget"], ["kept", "over_budget", "kept"]],
        0.4: [["kept"] * 2, ["kept"] + ["over_budget"] * 2, ["kept", "over_budget", "kept"]],
        0.0: [["kept", "over_budget"]] + [["kept"] + ["over_budget"] * 2] * 2,
    }
    for synthetic_share, expected in share.items():
        found = chosen(table_of(*rows), synthetic_share=synthetic_share)
        assert found == [*expected, ["over_budget"]]
    assert chosen(table_of(*rows), synthetic_share=1.0) == [["kept"] * len(row) for row in rows]


def test_a_picture_that_loses_all_to_the_budget_keeps_its_best_web_caption():
    rows = [
        [caption("web", 0.25, 0), caption("web", 0.375, 0), caption("synthetic", 0.5, 0)],
        [caption("web", 0.125, 0), caption("synthetic", 0.75, 0)],  # its web one reaches nothing
        [caption("web", 0.25, 0), caption("synthetic", 1, 0)],
        [caption("web", 1, 0), caption("synthetic", 0.875, 0)],
        [caption("web", 0.25, 0), caption("synthetic", 0.625, 0)],
    ]
    options = {"top_k": 1, "web_threshold": 0.2}
    before = chosen(table_of(*rows), **options)
    assert before == [
        ["not_best", "not_best", "kept"],
        ["below_threshold", "kept"],
        ["not_best", "kept"],
        ["kept", "not_best"],
        ["not_best", "kept"],
    ]
    # Beside the web's one: with the best written one two more of the web, with two of them too.
    over = chosen(table_of(*rows), **options, synthetic_share=0.4)
    assert over == [
        ["not_best", "kept", "over_budget"],
        ["below_threshold", "kept"],
        ["not_best", "kept"],
        ["kept", "not_best"],
        ["kept", "over_budget"],
    ]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.6, 1.0])
def test_the_budget_is_used_up_as_a_slow_reference_does(share):
    draw = np.random.default_rng(6)
    sources = ("web", "synthetic", "synthetic")
    rows = [
        [
            caption(sources[draw.integers(3)], int(draw.integers(5)) / 4, 0)
            for _ in range(draw.integers(5))
        ]
        for _ in range(60)
    ]
    tables = [table_of(*rows[:25]), table_of(), table_of(*rows[25:], first=25)]
    config = SelectionConfig(judge="stage1:b", top_k=2, synthetic_share=share).resolved(BOTH)
    choices = [choose(table, config) for table in tables]
    assert over_budget([], 0, share) == []
    over = over_budget([c.written for c in choices], sum(c.num_web for c in choices), share)
    both = zip(choices, over, strict=True)
    found = np.concatenate([choice.without(its) for choice, its in both]).tolist()

    before = np.concatenate([choice.statuses for choice in choices]).tolist()
    flat = [
        (number, c["source"], c["scores"][1]["itm"]) for number, row in enumerate(rows) for c in row
    ]
    ranked = sorted(
        (-itm, at)
        for at, (_, source, itm) in enumerate(flat)
        if source == "synthetic" and before[at] == "kept"
    )

    def with_best(stay: int) -> list[str]:
        """The statuses where so many written captions stay."""
        statuses = list(before)
        for _, at in ranked[stay:]:
            statuses[at] = "rejected:over_budget"
        for number in {flat[at][0] for _, at in ranked}:
            mine = [at for at, (owner, *_) in enumerate(flat) if owner == number]
            web = [(-flat[at][2], at) for at in mine if flat[at][1] == "web"]
            if web and not any(statuses[at] == "kept" for at in mine):
                statuses[min(web)[1]] = "kept"
        return statuses

    def written_share(statuses: list[str]) -> float:
        kept = [source for (_, source, _), its in zip(flat, statuses, strict=True) if its == "kept"]
        return kept.count("synthetic") / len(kept)

    fitting = [n for n in range(len(ranked) + 1) if written_share(with_best(n)) <= share]
    assert found == with_best(max(fitting))
    assert share in (0.0, 1.0) or 0 < max(fitting) < len(ranked)


@pytest.mark.parametrize(("num_web", "share", "left"), [(3, 0.7, 7), (1, 0.9, 9), (7, 0.3, 3)])
def test_a_share_that_comes_out_even_is_used_to_the_last_caption(num_web, share, left):
    none = np.full(12, -1)
    part = Written(np.arange(12), np.zeros((12, 2), np.float32), np.arange(12), none)
    [over] = over_budget([part], num_web, share)
    assert over.tolist() == [False] * left + [True] * (12 - left)


def test_pictures_that_were_not_judged_and_those_taken_down_stay_as_they_are():
    web = [{"text": text, "source": "web", "status": "kept"} for text in "abc"]
    table = table_of(unscored(web), None, [], ROW)
    options = {"top_k": 1, "web_threshold": 1.0, "synthetic_share": 0.0}
    assert chosen(table, **options)[:3] == [["kept"] * 3, None, []]
    assert chosen(table.slice(1, 2), **options) == [None, []]
    assert chosen(table.slice(0, 0), **options) == []


def test_rows_of_many_batches_are_chosen_as_a_slow_reference_does():
    draw = np.random.default_rng(5)
    rows = [
        [
            caption(
                ("web", "synthetic")[int(draw.integers(2))],
                int(draw.integers(4)) / 4,
                int(draw.integers(3)) / 4,
                "kept" if draw.random() < 0.8 else "rejected:duplicate",
            )
            for _ in range(draw.integers(6))
        ]
        for _ in range(90)
    ]

    def slow(row: list[dict]) -> list[str]:
        statuses = [c["status"].removeprefix("rejected:") for c in row]
        alive = []
        for place, c in enumerate(row):
            least = 0.25 if c["source"] == "web" else 0.5
            if statuses[place] == "kept":
                if c["scores"][1]["itm"] < least:
                    statuses[place] = "below_threshold"
                else:
                    alive.append((-c["scores"][1]["itm"], -c["scores"][1]["itc"], place))
        for _, _, place in sorted(alive)[2:]:
            statuses[place] = "not_best"
        return statuses

    table = pa.concat_tables([table_of(*rows[:40]), table_of(*rows[40:], first=40)])
    found = chosen(table, top_k=2, web_threshold=0.25, synthetic_threshold=0.5)
    assert found == [slow(row) for row in rows]
    assert {status for row in found for status in row} == {
        *("kept", "duplicate", "below_threshold", "not_best")
    }


def test_a_judge_is_found_by_who_judged():
    assert judges_of(table_of(None, ROW)) == BOTH
    assert judges_of(table_of(None)) == {}
    assert SelectionConfig().resolved({"clip:a": False}) == SelectionConfig(
        judge="clip:a", by="itc"
    )
    config = SelectionConfig(judge="stage1:b").resolved(BOTH)
    assert (config.judge, config.by) == ("stage1:b", "itm")
    with pytest.raises(ConfigError, match="judge: name one of clip:a, stage1:b"):
        SelectionConfig().resolved(BOTH)
    with pytest.raises(ConfigError, match="'clip:b' did not judge these; clip:a, stage1:b did"):
        SelectionConfig(judge="clip:b").resolved(BOTH)
    with pytest.raises(ConfigError, match="by: clip:a tells no match probability"):
        SelectionConfig(judge="clip:a", by="itm").resolved(BOTH)
    low = SelectionConfig(judge="stage1:b", web_threshold=-0.5)
    with pytest.raises(ConfigError, match=r"web_threshold: -0.5 is below 0"):
        low.resolved(BOTH)
    assert replace(low, by="itc").resolved(BOTH).web_threshold == -0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 0}, "top_k: 0 is not positive"),
        ({"web_threshold": 1.5}, "web_threshold: 1.5 is not between -1 and 1"),
        ({"synthetic_threshold": float("nan")}, "synthetic_threshold: nan is not between"),
        ({"synthetic_share": -0.1}, "synthetic_share: -0.1 is not between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        SelectionConfig(**options)


def test_a_caption_without_a_score_of_the_judge_is_named():
    odd = caption("web", 0.5, 0.5)
    odd["scores"] = odd["scores"][:1]
    with pytest.raises(
        DatasetError, match=f"picture {'0' * 31}1: a caption has no itm of stage1:b"
    ):
        chosen(table_of(ROW, [caption("web", 1.0, 1.0), odd]))
