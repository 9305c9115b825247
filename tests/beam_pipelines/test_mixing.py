import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beam_pipelines.mixing import ComponentConfig, check_components, requested_tokens, share_out, tokens_by_shard


def component(name="a", **settings):
    return ComponentConfig(**{"name": name, "kind": "documents", "input": ["corpus.jsonl"], **settings})


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


@example(held=[289, 248], epochs=0.02, sequence_length=483)
@given(
    held=TOKENS,
    epochs=st.floats(0.01, 9).filter(lambda epochs: epochs != int(epochs)),
    sequence_length=st.integers(2, 500),
)
def test_fractions_are_exact_to_one_row(held, epochs, sequence_length):
    taken = tokens_by_shard([component(epochs=epochs)], tokens={"a": held}, sequence_length=sequence_length)["a"]
    most = [math.ceil(epochs) * available for available in held]
    assert all(tokens % sequence_length == 0 or tokens == limit for tokens, limit in zip(taken, most, strict=True))
    assert all(tokens <= limit for tokens, limit in zip(taken, most, strict=True)), "a text more often than another"
    wanted = epochs * sum(held)
    assert sum(taken) > 0
    assert abs(sum(taken) - wanted) <= sequence_length


@example(held=[21, 7, 24, 4, 3], share=2, max_epochs=4, sequence_length=142)
@example(held=[5] * 8, share=13, max_epochs=4, sequence_length=10)
@given(
    held=TOKENS,
    share=st.integers(1, 100),
    max_epochs=st.sampled_from([1, 2.5, 4]),
    sequence_length=st.integers(2, 500),
)
def test_no_shard_takes_a_text_more_often_than_is_asked_for(held, share, max_epochs, sequence_length):
    wanted = int(max_epochs * sum(held) * share / 100)
    if not wanted:
        return
    components = [component(), component("b", token_ratio=1, relative_to=["a"], max_epochs=max_epochs)]
    tokens = {"a": [wanted, *[0] * (len(held) - 1)], "b": held}
    taken = tokens_by_shard(components, tokens=tokens, sequence_length=sequence_length)["b"]
    epochs = min(max_epochs, math.ceil(wanted / sum(held)))
    for of_shard, available in zip(taken, held, strict=True):
        assert of_shard <= epochs * available
        assert of_shard % sequence_length == 0 or of_shard == int(epochs) * available
    # Of half an epoch a shard takes whole rows only, so each may be less than a row short of its limit.
    slack = sequence_length * (1 if epochs == int(epochs) else 1 + len(held))
    assert wanted - slack <= sum(taken) <= wanted + sequence_length


def test_what_a_shard_has_no_room_for_goes_to_others():
    """Six rows of 0.93 epochs: eight shards hold less than a row each, so no share in whole rows would fit."""
    components = [component(), component("b", token_ratio=1, relative_to=["a"], max_epochs=1)]
    held = [9, 9, 9, 8, 8, 8, 8, 6]
    taken = tokens_by_shard(components, tokens={"a": [60, *[0] * 7], "b": held}, sequence_length=10)["b"]
    assert sum(taken) == 59, "less than a row is missing, rather than a text seen twice"
    assert all(of_shard in (0, available) for of_shard, available in zip(taken, held, strict=True))
    # A share of one row where each shard holds less: each gives what it has, once.
    components = [component(), component("b", token_share=0.1)]
    taken = tokens_by_shard(components, tokens={"a": [81, 0], "b": [6, 5]}, sequence_length=10)["b"]
    assert taken == [6, 5]


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
    most = 7 * math.ceil(ratio * base_epochs * sum(base) / (7 * len(base)))
    assert all(share % sequence_length == 0 or share == most for share in taken["b"])
    assert abs(sum(taken["b"]) - ratio * base_epochs * sum(base)) <= sequence_length
    assert max(taken["b"]) - min(taken["b"]) <= max(sequence_length, 7)


def test_a_share_is_of_the_whole_mixture():
    # 600 + 400 tokens are what 0.2 and 0.3 of the whole leave, so the whole is 2000.
    components = [
        component(epochs=2),
        component("ratio", token_ratio=2, relative_to=["a"], max_tokens=400),
        component("fifth", token_share=0.2),
        component("third", token_share=0.3),
    ]
    available = {"a": 300, "ratio": 50, "fifth": 1000, "third": 7}
    assert requested_tokens(components, available=available) == {"a": 600, "ratio": 400, "fifth": 400, "third": 600}
    taken = tokens_by_shard(components, tokens={name: [count] for name, count in available.items()}, sequence_length=10)
    assert taken == {"a": [600], "ratio": [400], "fifth": [400], "third": [600]}


@given(
    base=st.integers(1, 10**6),
    shares=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    sequence_length=st.integers(2, 500),
)
def test_shares_are_exact_to_one_row(base, shares, sequence_length):
    names = "bcd"[: len(shares)]
    components = [
        component(),
        *(component(name, token_share=share / 100) for name, share in zip(names, shares, strict=True)),
    ]
    tokens = {"a": [base], **{name: [5, 0, 9][:1] for name in names}}
    taken = {
        name: sum(by_shard)
        for name, by_shard in tokens_by_shard(components, tokens=tokens, sequence_length=sequence_length).items()
    }
    whole = Fraction(base * 100, 100 - sum(shares))
    for name, share in zip(names, shares, strict=True):
        assert abs(taken[name] - whole * share / 100) <= sequence_length


def test_a_cap_holds_and_a_limit_says_what_is_available():
    capped = [component(epochs=4, max_tokens=50), component("b", token_ratio=1, relative_to=["a"], max_epochs=2)]
    assert requested_tokens(capped, available={"a": 30, "b": 25}) == {"a": 50, "b": 50}
    with pytest.raises(ValueError, match=r"'b': 50 tokens are asked for, .* have 24, and max_epochs allows 2 times"):
        requested_tokens(capped, available={"a": 30, "b": 24})
    shared = [component(), component("b", token_share=0.5, max_epochs=1.5)]
    assert requested_tokens(shared, available={"a": 30, "b": 20}) == {"a": 30, "b": 30}
    with pytest.raises(ValueError, match=r"30 tokens are asked for, .* have 19, .* \(28 tokens\)"):
        requested_tokens(shared, available={"a": 30, "b": 19})
    # A cap is not rounded up to the next row.
    assert tokens_by_shard([component(max_tokens=19)], tokens={"a": [70]}, sequence_length=10) == {"a": [10]}
    # A cap above what is there changes nothing: the last row keeps its padding.
    assert tokens_by_shard([component(max_tokens=99)], tokens={"a": [7, 6]}, sequence_length=5) == {"a": [7, 6]}


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([component(fraction=0)], "fraction is 0; it must be above 0 and at most 1"),
        ([component(fraction=1.1)], "fraction is 1.1"),
        ([component(kind="poems")], "kind is 'poems'; it must be one of"),
        ([component(max_tokens=0)], "max_tokens is 0; it must be above 0"),
        ([component(max_epochs=2.0)], "max_epochs goes with token_ratio or token_share"),
        ([component(), component("b", token_share=1.0)], "token_share is 1.0; it must be below 1"),
        ([component(), component("b", token_share=0.5, max_tokens=3)], "a share that is capped is another"),
        ([component(), component("b", token_share=0.5, epochs=2)], "not two of them"),
        ([component(), component("b", token_share=0.5, relative_to=["a"])], "token_share is of the whole mixture"),
        (
            [component(), component("b", token_share=0.5, token_ratio=1, relative_to=["a"])],
            "give token_ratio or token_share, not both",
        ),
        ([component(token_share=0.5)], "add up to 0.5, and no component is taken by epochs"),
        (
            [component(), component("b", token_share=0.4), component("c", token_share=0.6)],
            r"add up to 1, and \['a'\] is taken by epochs: the shares must add up to less than 1",
        ),
        ([component(exclude_documents_of=["b"])], "exclude_documents_of is .'b'.; it must name other components"),
        ([component(exclude_documents_of=["a"])], "must name other components"),
        (
            [component(exclude_documents_of=["b"]), component("b", exclude_documents_of=["a"])],
            "other components that exclude none themselves",
        ),
        (
            [component(kind="chains", exclude_documents_of=["b"]), component("b")],
            "a text of kind 'chains' may hold several documents",
        ),
    ],
)
def test_settings_that_cannot_be_met_are_refused(components, message):
    with pytest.raises(ValueError, match=message):
        check_components(components)


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([], "components is empty"),
        ([component(), component()], "each its own"),
        ([component("")], "must have names"),
        ([ComponentConfig(name="a", kind="documents", input=[])], "'a': input is empty"),
        ([component(relative_to=["b"]), component("b")], "relative_to goes with token_ratio"),
        ([component(), component("b", token_ratio=1, relative_to=["a", "a"])], "taken by epochs, each once"),
        ([component(epochs=0)], "epochs is 0; it must be above 0"),
        ([component(epochs=float("nan"))], "epochs is nan"),
        ([component(epochs=float("inf"))], "epochs is inf"),
        ([component(token_ratio=0.0, relative_to=["b"]), component("b")], "token_ratio is 0.0; it must be above 0"),
        ([component(token_ratio=1.0, epochs=2, relative_to=["b"]), component("b")], "not two of them"),
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
