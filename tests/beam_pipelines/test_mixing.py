from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.mixing import ComponentConfig, check_components, share_out, tokens_by_shard


def component(name="a", **settings):
    return ComponentConfig(name=name, kind="documents", input=["corpus.jsonl"], **settings)


def test_shares_follow_the_largest_remainder():
    # Quotas 3.5, 3.5 and 0: the first of the equal remainders gets the seat.
    assert share_out(7, weights=[1, 1, 0]) == [4, 3, 0]
    # Hamilton's method on 10 seats: quotas 4.7, 3.4, 1.9.
    assert share_out(10, weights=[47, 34, 19]) == [5, 3, 2]
    assert share_out(0, weights=[3, 1]) == [0, 0]


@given(total=st.integers(0, 10**9), weights=st.lists(st.integers(0, 10**12), min_size=1, max_size=6).filter(any))
def test_shares_add_up_and_each_is_its_quota_rounded_the_larger_remainder_up(total, weights):
    shares = share_out(total, weights=weights)
    quotas = [Fraction(total * weight, sum(weights)) for weight in weights]
    assert sum(shares) == total
    remainders = []
    for share, quota in zip(shares, quotas, strict=True):
        assert share in (int(quota), int(quota) + 1)
        remainders.append((share > int(quota), quota - int(quota)))
    up = [remainder for is_up, remainder in remainders if is_up]
    down = [remainder for is_up, remainder in remainders if not is_up]
    assert not up or not down or min(up) >= max(down)
    assert all(remainder > 0 for remainder in up)


def test_whole_epochs_take_every_token_so_many_times():
    taken = tokens_by_shard(
        [component(), component("b", epochs=3)], tokens={"a": [5, 0, 9], "b": [1, 7, 0]}, sequence_length=4
    )
    assert taken == {"a": [5, 0, 9], "b": [3, 21, 0]}


def test_a_fraction_and_a_ratio_are_rounded_to_rows_and_shared_out():
    components = [
        component(),
        component("half", epochs=0.5),
        component("as-many", token_ratio=1.0, relative_to=["a", "half"]),
    ]
    taken = tokens_by_shard(
        components, tokens={"a": [600, 400], "half": [100, 300], "as-many": [30, 10]}, sequence_length=10
    )
    # 0.5 * 400 = 200 tokens in 20 rows, shared 1 to 3; 1000 + 200 tokens in 120 rows, shared 3 to 1.
    assert taken == {"a": [600, 400], "half": [50, 150], "as-many": [900, 300]}


TOKENS = st.lists(st.integers(0, 5000), min_size=1, max_size=5).filter(any)


@given(
    held=TOKENS,
    epochs=st.floats(0.01, 9).filter(lambda epochs: epochs != int(epochs)),
    sequence_length=st.integers(2, 500),
)
def test_fractions_are_exact_to_one_row(held, epochs, sequence_length):
    taken = tokens_by_shard([component(epochs=epochs)], tokens={"a": held}, sequence_length=sequence_length)["a"]
    assert all(tokens % sequence_length == 0 for tokens in taken)
    assert all(tokens == 0 for tokens, available in zip(taken, held, strict=True) if not available)
    wanted = epochs * sum(held)
    assert sum(taken) >= sequence_length
    assert abs(sum(taken) - wanted) <= sequence_length


@given(
    base=TOKENS,
    ratio=st.floats(0.01, 20),
    base_epochs=st.sampled_from([0.3, 1.0, 4.0]),
    sequence_length=st.integers(2, 500),
)
def test_ratios_are_exact_to_one_row(base, ratio, base_epochs, sequence_length):
    tokens = {"a": base, "b": [7] * len(base)}
    components = [component("b", token_ratio=ratio, relative_to=["a"]), component(epochs=base_epochs)]
    taken = tokens_by_shard(components, tokens=tokens, sequence_length=sequence_length)
    assert all(share % sequence_length == 0 for share in taken["b"])
    assert abs(sum(taken["b"]) - ratio * base_epochs * sum(base)) <= sequence_length
    assert max(taken["b"]) - min(taken["b"]) <= sequence_length


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([], "components is empty"),
        ([component(), component()], "each its own"),
        ([component("")], "must have names"),
        ([ComponentConfig(name="a", kind="documents", input=[])], "'a': input is empty"),
        ([component(relative_to=["b"]), component("b")], "relative_to goes with token_ratio"),
        ([component(epochs=0)], "epochs is 0; it must be above 0"),
        ([component(epochs=float("nan"))], "epochs is nan"),
        ([component(epochs=float("inf"))], "epochs is inf"),
        ([component(token_ratio=0.0, relative_to=["b"]), component("b")], "token_ratio is 0.0; it must be above 0"),
        ([component(token_ratio=1.0, epochs=2, relative_to=["b"]), component("b")], "not both"),
        ([component(token_ratio=1.0)], r"relative_to is \[\]"),
        ([component(token_ratio=1.0, relative_to=["nobody"]), component("b")], "nobody.*must name components.*'b'"),
        ([component(token_ratio=1.0, relative_to=["a"])], "must name components that are taken by epochs"),
    ],
)
def test_impossible_mixtures_are_refused(components, message):
    with pytest.raises(ValueError, match=message):
        check_components(components)


def test_a_possible_mixture_is_not_refused():
    check_components([component(epochs=0.2), component("b", token_ratio=1.0, relative_to=["a"])])


@pytest.mark.parametrize("tokens", [{}, {"a": [0, 0]}])
def test_a_component_without_a_token_is_refused(tokens):
    with pytest.raises(ValueError, match=r"'a' has no text: its input \['corpus.jsonl'\]"):
        tokens_by_shard([component()], tokens=tokens, sequence_length=4)
