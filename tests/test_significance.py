"""Friedman's and Nemenyi's tests against published figures, and the critical-difference diagram."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from amn_mpi.report import diagram, overview, significance, style
from amn_mpi.report.significance import Ranking, rank

# Demsar (2006), table 6: AUC of C4.5 with no, one, the other and both parameters tuned, on 14 data sets.
# .97501: printed as .975, ranked before the other.
AUC = """.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657
.882 .888 .886 .898  .936 .931 .916 .931  .661 .668 .609 .685  .583 .583 .563 .625  .775 .838 .866 .875
1 1 1 1  .940 .962 .965 .962  .619 .666 .614 .669  .972 .981 .97501 .975  .957 .978 .946 .970"""
# Quantiles of the studentized range at 5 % with infinitely many degrees of freedom, 2 to 20 groups.
STUDENTIZED = (2.77, 3.31, 3.63, 3.86, 4.03, 4.17, 4.29, 4.39, 4.47, 4.55, 4.62, 4.68, 4.74, 4.80, 4.85,
               4.89, 4.93, 4.97, 5.01)  # fmt: skip


def test_the_example_that_was_published() -> None:
    values = np.array(AUC.split(), float).reshape(14, 4)
    names = ("C4.5", "+m", "+cf", "+m+cf")
    found = rank({("set", k): dict(zip(names, row)) for k, row in enumerate(values)})
    assert {name: round(value, 3) for name, value in found.ranks.items()} == {
        "+m+cf": 1.964, "+m": 2.000, "+cf": 2.893, "C4.5": 3.143
    }  # fmt: skip
    assert list(found.ranks) == ["+m+cf", "+m", "+cf", "C4.5"] and found.blocks == 14
    assert round(found.chi2, 2) == 9.28 and round(found.critical, 2) == 1.25
    assert 0.02 < found.p < 0.05, (
        "9.28 lies between the quantiles 7.815 and 9.837 of three degrees of freedom"
    )
    assert found.alike() == [list(found.ranks)], "no pair differs, as the paper says"


def test_quantiles_are_those_of_the_tables() -> None:
    for count, value in enumerate(STUDENTIZED, 2):
        assert abs(significance.nemenyi(count) * math.sqrt(2) - value) < 0.0051, count
    known = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
    assert all(abs(significance.nemenyi(k) - value) < 0.001 for k, value in enumerate(known, 2))
    drawn = np.random.default_rng(0).standard_normal((200_000, 12))
    share = (np.ptp(drawn, axis=1) <= 3.5).mean()
    assert abs(significance.range_cdf(3.5, 12) - share) < 0.003
    for degrees, value in {1: 3.841, 2: 5.991, 3: 7.815, 4: 9.488, 10: 18.307, 19: 30.144}.items():
        assert abs(significance.chi2_tail(value, degrees) - 0.05) < 1e-4
    assert significance.chi2_tail(0.0, 5) == 1.0


def test_ties_diverged_runs_and_missing_ones() -> None:
    full = {"a": 3.0, "b": 2.0, "c": 2.0, "d": math.nan}
    blocks = {("s", k): dict(full) for k in range(4)}
    assert rank(blocks).ranks == {"a": 1.0, "b": 2.5, "c": 2.5, "d": 4.0}
    blocks[("s", 4)] = {"a": 1.0, "b": 2.0, "late": 9.0}
    found = rank(blocks)
    assert (found.blocks, found.unused, found.left_out) == (4, 1, {"late": 1})
    assert found.ranks == {"a": 1.0, "b": 2.5, "c": 2.5, "d": 4.0}
    assert "Left out" in overview.told(found) and "late (1 blocks)" in overview.told(found)
    nowhere = rank({("s", 0): {"a": 1.0, "b": 2.0}, ("s", 1): {"b": 1.0, "c": 2.0}})
    assert not nowhere.testable and "here are 3 methods and 0 blocks" in overview.told(nowhere)
    assert not rank({}).testable and not rank({("s", 0): full}).testable
    assert not rank({("s", k): {"a": 1.0, "b": 2.0} for k in range(9)}).testable


def test_bars_join_those_that_do_not_differ() -> None:
    places = {"a": 1.0, "b": 1.5, "c": 2.6, "d": 3.4, "e": 6.5, "f": 6.6}
    found = Ranking(places, 20, {})
    assert round(found.critical, 3) == round(2.850 * math.sqrt(6 * 7 / (6 * 20)), 3) == 1.686
    assert found.alike() == [["a", "b", "c"], ["c", "d"], ["e", "f"]]
    assert diagram.stacked(found) == [0, 1, 0]
    assert replace(found, blocks=2).alike() == [["a", "b", "c", "d"], ["b", "c", "d", "e", "f"]]
    for width in (style.WIDE, style.NARROW):
        with style.look(width):
            drawn = diagram.critical_difference(found, width)
            assert drawn is not None
            texts = [text.get_text() for text in drawn.axes[0].texts]
            assert {"CD = 1.69", "1.00 a", "2.60 c", "d 3.40", "f 6.60"} <= set(texts)
            bars = [line for line in drawn.axes[0].lines if line.get_linewidth() == 2.5]
            assert len(bars) == 3
            assert diagram.critical_difference(Ranking({"a": 1.0, "b": 2.0}, 20, {}), width) is None


def test_long_names_stand_beside_the_lines() -> None:
    """Best and worst are at the ends of the axis, where there is least room."""
    places = {f"{name}_a_very_long_name": float(k) for k, name in enumerate("abcdefgh", 1)}
    for width in (style.WIDE, style.NARROW):
        with style.look(width):
            drawn = diagram.critical_difference(Ranking(places, 9, {}), width)
            assert drawn is not None
            (ax,) = drawn.axes
            names = [text.get_window_extent() for text in ax.texts if "_" in text.get_text()]
            assert len(names) == 8 and all(drawn.bbox.contains(b.x0, b.y0) for b in names)
            paths = [ax.transData.transform_path(line.get_path()) for line in ax.lines]
            assert not any(path.intersects_bbox(box, filled=False) for path in paths for box in names)


def test_those_who_tie_lead_together() -> None:
    assert Ranking({"a": 1.5, "c": 1.5, "b": 3.0}, 2, {}).leaders == ["a", "c"]
    assert Ranking({"b": 1.0, "a": 2.0}, 2, {}).leaders == ["b"]
