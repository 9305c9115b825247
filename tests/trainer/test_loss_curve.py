import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.loss_curve import average_stretches, draw_loss_curve

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


def test_averages_stretches_of_neighbours():
    points = [(10, 4.0), (20, 2.0), (30, float("nan")), (40, 3.0), (50, 1.0), (60, 5.0)]
    assert average_stretches(points, num_stretches=2) == [(20, 3.0), (60, 3.0)]
    assert average_stretches(points, num_stretches=9) == [(10, 4.0), (20, 2.0), (40, 3.0), (50, 1.0), (60, 5.0)]


@given(st.lists(st.floats(0, 20), max_size=50), st.integers(1, 60))
def test_no_loss_is_left_out_of_the_averages(losses, num_stretches):
    points = list(enumerate(losses))
    averaged = average_stretches(points, num_stretches=num_stretches)
    assert len(averaged) == min(num_stretches, len(losses))
    ends = [-1, *(tokens for tokens, _ in averaged)]
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    assert sum(lengths) == len(losses)
    assert not lengths or max(lengths) - min(lengths) <= 1
    total = sum(length * loss for length, (_, loss) in zip(lengths, averaged, strict=True))
    assert total == pytest.approx(sum(losses))


def test_draws_to_scale():
    svg = ElementTree.fromstring(draw_loss_curve([(0, 4.0), (500, 3.0), (1000, 2.0)], validation=[(1000, 2.5)]))
    line = svg.find("svg:polyline", NAMESPACE).get("points")
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in line.split())
    assert x0 < x1 < x2
    assert y0 < y1 < y2, "a lower loss is further down"
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
    dot = svg.find("svg:circle", NAMESPACE)
    assert float(dot.get("cx")) == x2
    assert float(dot.get("cy")) == pytest.approx((y1 + y2) / 2, abs=0.11)
    assert "1k" in [text.text for text in svg.iterfind("svg:text", NAMESPACE)]


def test_one_point_and_a_million_are_both_a_picture():
    assert "<polyline" in draw_loss_curve([(7, 3.0)], validation=[])
    assert len(draw_loss_curve([(step, 3.0) for step in range(100_000)], validation=[])) < 10_000
    with pytest.raises(ValueError, match="no training loss"):
        draw_loss_curve([(7, float("nan"))], validation=[])
