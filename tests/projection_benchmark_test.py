"""Tests of the choice of limits in `benchmarks.projection`."""

from benchmarks.projection import Case, best_limit, row


def _case(before, share, plain, within, photograph=0):
    return Case(photograph, 90, before, share, (30.0, plain, within))


def _of_two(found):
    """Returns the same files of two photographs."""
    return [x._replace(photograph=i) for i in range(2) for x in found]


def test_limit_separates_the_kinds_if_possible():
    once = [_case(0, share, 31.0, 31.2) for share in (0.01, 0.02)]
    twice = [_case(50, share, 31.0, 30.5) for share in (0.06, 0.1, 0.2, 0.3)]
    assert best_limit(once + twice) == 0.04
    assert row(90, _of_two(once + twice))[-2:] == ["0.0%", "0.0%"]


def test_both_kinds_have_the_same_total_weight():
    """One file that gains much outweighs eight files that lose a little."""
    once = [_case(0, 0.3, 31.0, 33.0)]
    twice = [_case(50, 0.1 + i / 100, 31.0, 30.5) for i in range(8)]
    assert best_limit(once + twice) > 0.3
    assert row(90, _of_two(once + twice))[-2:] == ["0.0%", "100.0%"]


def test_no_file_compressed_once_loses_much():
    """The mean would be better without projecting the files compressed twice."""
    twice = [_case(50, 0.1 + i / 100, 31.0, 29.0) for i in range(8)]
    for plain, found in ((29.94, 0.25), (29.96, 0.05)):
        once = [_case(0, 0.2, plain, 30.1)]
        limit = best_limit(once + twice)
        assert (limit > 0.2) == (found > 0.2), plain


def test_nothing_is_projected_if_the_loss_outweighs_the_gain():
    twice = [_case(50, 0.1, 31.0, 30.5)]
    once = [_case(0, 0.2, 31.0, 31.1)]
    assert best_limit(once + twice) < 0.1


def test_a_photograph_is_decided_by_the_limit_of_the_others():
    """The second photograph's files would be separated by its own limit alone."""
    first = [_case(0, 0.1, 31.0, 31.2), _case(50, 0.2, 31.0, 30.5)]
    second = [_case(0, 0.3, 31.0, 31.2, 1), _case(50, 0.4, 31.0, 30.5, 1)]
    assert best_limit(first) < 0.2
    assert 0.3 < best_limit(second) < 0.4
    # The limit of the second photograph takes the twice compressed file of the first.
    assert row(90, first + second)[-2:] == ["50.0%", "50.0%"]
