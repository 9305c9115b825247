from itertools import islice, product
from string import ascii_uppercase

from templates.option_labels import option_labels


def test_labels_of_the_first_options() -> None:
    assert option_labels(0) == {"upper": "A", "lower": "a", "number": "1", "roman": "i"}
    assert option_labels(3) == {"upper": "D", "lower": "d", "number": "4", "roman": "iv"}


def test_letters_go_on_in_the_order_of_length_and_alphabet() -> None:
    names = ("".join(letters) for length in (1, 2, 3) for letters in product(ascii_uppercase, repeat=length))
    expected = list(islice(names, 1000))
    assert [option_labels(index)["upper"] for index in range(1000)] == expected


def test_roman_numerals_add_up() -> None:
    """Oracle: the rule for reading them: a smaller sign before a larger one is subtracted."""
    values = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}
    numerals = [option_labels(index)["roman"] for index in range(1500)]
    for number, numeral in enumerate(numerals, start=1):
        signs = [values[sign] for sign in numeral]
        pairs = zip(signs, [*signs[1:], 0], strict=True)
        assert sum(-sign if sign < after else sign for sign, after in pairs) == number
    assert len(set(numerals)) == 1500
