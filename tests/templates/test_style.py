from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templates.bank import load_bank
from templates.style import Style


def make_style(chain_id: str, *, seed: int = 0) -> Style:
    return Style(load_bank(), seed=seed, chain_id=chain_id)


def test_a_choice_stands_once_made() -> None:
    style = make_style("chain")
    assert style.entry("numbered") is style.entry("numbered")
    assert list(style.choices) == ["numbered"]


@given(order=st.permutations(["free_form", "separators", "numbered", "option_styles"]))
def test_the_order_of_asking_changes_no_choice(order: list[str]) -> None:
    style, asked_in_order = make_style("chain", seed=4), make_style("chain", seed=4)
    for section in sorted(order):
        asked_in_order.entry(section)
    for section in order:
        style.entry(section)
    assert style.choices == asked_in_order.choices


@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(5e-324, 1e9)), min_size=1, max_size=6).filter(any),
    chain_id=st.text(),
)
def test_a_weight_of_zero_is_never_chosen(weights: list[float], chain_id: str) -> None:
    names = {str(index): weight for index, weight in enumerate(weights)}
    style = make_style(chain_id)
    assert names[style.weighted("family", names)] > 0


def test_weights_are_followed() -> None:
    names = Counter(make_style(f"c{index}").weighted("x", {"a": 1, "b": 0, "c": 3}) for index in range(4000))
    assert names["b"] == 0
    assert names["a"] / 4000 == pytest.approx(0.25, abs=0.03)


def test_option_orders_are_uniform_and_differ_between_pairs() -> None:
    styles = [make_style(f"c{index}") for index in range(3000)]
    first = [tuple(style.option_order(3, example_index=0, pair_index=0)) for style in styles]
    second = [tuple(style.option_order(3, example_index=0, pair_index=1)) for style in styles]
    other_text = [tuple(style.option_order(3, example_index=1, pair_index=0)) for style in styles]
    for orders in (first, second, other_text):
        counts = Counter(orders)
        assert set(counts) == set(permutations(range(3)))
        assert min(counts.values()) > 400
    for orders in (second, other_text):
        same = sum(a == b for a, b in zip(first, orders, strict=True))
        assert same == pytest.approx(500, abs=90)
