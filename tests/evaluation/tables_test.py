"""Tables of results, and tables of published results."""

import math

import pytest

from cqr_jax import tables
from cqr_jax.evaluation import published


def _row(method, psnr, dataset="live1", quality=10, **fields):
    case = {"dataset": dataset, "quality": quality, "method": method}
    measures = {"psnr": psnr, "ssim": 0.81234, "psnr_b": 29.0}
    return {**case, **measures, "images": 29, "identical": 0, **fields}


def test_mean_leaves_infinite_values_out():
    assert tables.mean([1.0, math.inf, 3.0]) == 2
    assert tables.mean([math.inf]) is None


def test_a_table_has_a_column_for_each_method():
    rows = [_row("jpeg", 27.774), _row("ours", 29.5), _row("ours", None, quality=20)]
    table = tables.by_method(rows)
    assert table == [
        ["dataset", "QF", "images", "jpeg", "ours"],
        ["live1", "10", "29", "27.77 | 0.8123 | 29.00", "29.50 | 0.8123 | 29.00"],
        ["live1", "20", "29", "", "inf | 0.8123 | 29.00"],
    ]
    lines = tables.text(table).splitlines()
    assert lines[1] == (
        "live1    10      29  27.77 | 0.8123 | 29.00  29.50 | 0.8123 | 29.00"
    )
    assert tables.markdown(table).splitlines()[:3] == [
        "| dataset | QF | images | jpeg | ours |",
        "|---|---|---|---|---|",
        "| live1 | 10 | 29 | 27.77 \\| 0.8123 \\| 29.00 | 29.50 \\| 0.8123 \\| 29.00 |",
    ]


def test_cells_show_the_requested_metrics():
    rows = [_row("ours", 29.5, gmsd=x) for x in (0.1, 0.3)]
    assert tables.by_method(rows, ("gmsd",))[1][3] == "0.2000 ±0.1414"


def test_a_cell_shows_mean_and_sample_standard_deviation_over_seeds():
    table = tables.by_method([_row("ours", x) for x in (29.0, 30.0, 31.0)])
    assert table[1][3] == "30.00 ±1.00 | 0.8123 ±0.0000 | 29.00 ±0.00"


def test_identical_images_are_marked_and_named():
    rows = [_row("jpeg", 27.0), _row("ours", 29.0, identical=2)]
    assert tables.by_method(rows)[1][4].endswith("29.00*")
    assert tables.identical_note(rows).endswith("ours on live1 at QF 10: 2 of 29")
    assert tables.identical_note(rows[:1]) == ""


def test_csv_has_all_fields():
    rows = [{"a": 1, "b": math.inf}, {"a": 2, "c": "x,y"}]
    assert tables.to_csv(rows) == 'a,b,c\n1,inf,\n2,,"x,y"\n'


def test_published_results_of_the_evaluated_sets():
    rows = [_row("jpeg", 27.8, "classic5", 20), _row("jpeg", 27.8, "live1", 40)]
    (paper, table), (later, more) = published.table2(rows).items()
    assert "Published, not measured" in paper
    assert "Table 2 of the paper" in paper
    assert table[0][2:] == [
        "LD (2014)",
        "ARCNN (2015)",
        "TNRD (2017)",
        "DnCNN (2017)",
        "LPIO (2018)",
        "RNAN (2019)",
        "the paper (2020)",
    ]
    assert table[1][:2] == ["classic5", "20"]
    assert table[1][-1] == "32.89 | 0.886 | 32.41"
    assert len(table) == 2
    assert "arXiv:2108.10257" in later
    assert [line[:2] for line in more[1:]] == [["classic5", "20"], ["live1", "40"]]
    assert published.table2([_row("jpeg", 27.0, "embedded")]) == {}

    ((_, table),) = published.table1([_row("ours", 29.4, "bsds500", 30)]).items()
    assert table[0][2:] == ["w/o CQR", "w/o DC", "w/o L_Q", "w/o L_F", "ours"]
    assert table[1][-1] == "32.91 | 0.891 | 31.98"


def test_published_results_of_colour_are_in_their_own_table():
    rows = [_row("jpeg", 25.7, name) for name in ("live1", "bsds500-test")]
    ((title, table),) = published.colour(rows).items()
    assert "over RGB, 4:2:0" in title
    assert "arXiv:2109.14573" in title
    methods = ["JPEG", "ARCNN", "RDN", "QGAC", "FBCNN", "SwinIR", "GRL-S"]
    assert [name.split(" ")[0] for name in table[0][2:]] == methods
    psnr = ["25.69", "26.91", "27.47", "27.62", "27.77", "28.06", "28.13"]
    assert table[1] == ["live1", "10", *psnr]
    assert table[2] == ["bsds500-test", "10", "25.84", "", "", "27.74", "27.85", "", ""]
    assert "25.69" not in str(published.table2(rows))
    assert published.colour([_row("jpeg", 28.0, quality=50)]) == {}


@pytest.mark.parametrize(
    ("table", "count"),
    [(published.table1, 5 * 3), (published.table2, 7 * 3)],
)
def test_published_tables_are_complete(table, count):
    qualities = (10, 20, 30)
    (paper, *_) = table([_row("x", 1.0, "bsds500", q) for q in qualities]).values()
    cells = [cell for line in paper[1:] for cell in line[2:]]
    assert len(cells) == count
    for cell in cells:
        psnr, ssim, psnr_b = map(float, cell.split(" | "))
        assert 27 < psnr_b <= psnr < 34
        assert 0.75 < ssim < 0.95
