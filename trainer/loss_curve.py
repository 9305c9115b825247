"""A picture of a run's losses as SVG, for the model card: training loss over tokens, and validation loss in points.

One scale for both; the training losses are averaged over equal stretches of tokens, so that a long run has no more
points than a short one. Drawn by hand because a plotting library would be the largest dependency of all for two lines.

Does not say which component lost how much, which the card's table does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 28, 44
_MAX_POINTS = 300
_TRAINING_COLOUR, _VALIDATION_COLOUR = "#0072b2", "#d55e00"


def draw_loss_curve(training: Sequence[tuple[int, float]], *, validation: Sequence[tuple[int, float]]) -> str:
    """The losses as the text of an SVG file.

    Args:
        training: Tokens seen and training loss in nats a token, in order.
        validation: Tokens seen and validation loss in nats a token, in order; may be empty.

    Raises:
        ValueError: There is no training loss.
    """
    training = average_stretches(training, num_stretches=_MAX_POINTS)
    if not training:
        raise ValueError("There is no training loss to draw.")
    points = [*training, *validation]
    max_tokens = max(tokens for tokens, _ in points) or 1
    low, high = _loss_range([loss for _, loss in points])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point[0] / max_tokens
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - point[1]) / (high - low)
        return round(x, 1), round(y, 1)

    body = []
    for step in range(5):
        loss = low + (high - low) * step / 4
        x, y = place((0, loss))
        body.append(f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#d0d0d0"/>')
        body.append(_text(x - 8, y + 4, f"{loss:.2f}", anchor="end"))
        x, y = place((max_tokens * step / 4, low))
        body.append(_text(x, y + 18, _short(max_tokens * step / 4), anchor="end" if step == 4 else "middle"))
    body.append(_text(_WIDTH / 2, _HEIGHT - 8, "tokens seen", anchor="middle"))
    body.append(_text(_LEFT, 16, "training loss", colour=_TRAINING_COLOUR))
    line = " ".join(f"{x},{y}" for x, y in map(place, training))
    body.append(f'<polyline points="{line}" fill="none" stroke="{_TRAINING_COLOUR}" stroke-width="1.5"/>')
    if validation:
        body.append(_text(_LEFT + 110, 16, "validation loss", colour=_VALIDATION_COLOUR))
        dots = [place(point) for point in validation]
        line = " ".join(f"{x},{y}" for x, y in dots)
        body.append(f'<polyline points="{line}" fill="none" stroke="{_VALIDATION_COLOUR}" stroke-dasharray="4 3"/>')
        body += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{_VALIDATION_COLOUR}"/>' for x, y in dots]
    lines = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'font-family="sans-serif" font-size="12">\n<title>Loss in nats a token over tokens seen</title>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n{lines}\n</svg>\n'
    )


def average_stretches(points: Sequence[tuple[int, float]], *, num_stretches: int) -> list[tuple[int, float]]:
    """At most so many points: the mean loss of each stretch of neighbours, at the tokens where the stretch ends.

    The lengths of stretches differ by one point at most. Losses that are no numbers are left out.
    """
    finite = [(tokens, loss) for tokens, loss in points if math.isfinite(loss)]
    num_stretches = min(num_stretches, len(finite))
    averaged = []
    for index in range(num_stretches):
        stretch = finite[len(finite) * index // num_stretches : len(finite) * (index + 1) // num_stretches]
        averaged.append((stretch[-1][0], sum(loss for _, loss in stretch) / len(stretch)))
    return averaged


def _loss_range(losses: Sequence[float]) -> tuple[float, float]:
    """A little more than the losses span; never nothing."""
    finite = [loss for loss in losses if math.isfinite(loss)] or [0.0]
    margin = 0.05 * (max(finite) - min(finite)) or 0.5
    return min(finite) - margin, max(finite) + margin


def _short(count: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.0f}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#333333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
