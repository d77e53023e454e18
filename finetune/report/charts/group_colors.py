"""Colors of many lines of one kind, such as the layer groups of a network."""

from collections.abc import Sequence

_NUM_SERIES = 8
"""Colors of the style sheet."""

_STOPS = ((200, 78, 0), (161, 69, 140), (0, 114, 178), (0, 128, 94))
"""Colors of a ramp for more lines, of similar lightness."""


def choose_group_colors(num_lines: int) -> Sequence[str]:
    """Return a color for each line, those of the style sheet for up to eight lines."""
    if num_lines <= _NUM_SERIES:
        return [f"--series-{number}" for number in range(1, num_lines + 1)]
    return [_mix(number / (num_lines - 1)) for number in range(num_lines)]


def _mix(position: float) -> str:
    """Return the color at a position from 0 to 1 of the ramp."""
    place = position * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    part = place - index
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(_STOPS[index], _STOPS[index + 1], strict=True)
    )
    return f"#{red:02x}{green:02x}{blue:02x}"
