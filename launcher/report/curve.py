"""A loss curve in a terminal: braille dots (2 x 4 per character), or stars where those cannot be shown.

Written here rather than taken from a plotting package so that `metrics` works in the base install.
"""

from __future__ import annotations

from collections.abc import Sequence

# Bit of each dot of a braille character, by (column, row) inside it (Unicode chart U+2800).
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_LABEL = 8  # characters for the numbers on the left


def curve(
    points: Sequence[tuple[float, float]],
    *,
    width: int = 78,
    height: int = 14,
    marks: Sequence[float] = (),
    unicode: bool = True,
) -> list[str]:
    """Lines of text showing y over x, with `^` under the axis where x is in `marks`.

    points: finite (x, y) in order of x. Where several fall into one column of dots, their mean is drawn.
    """
    points = [(x, y) for x, y in points if abs(y) != float("inf") and y == y]
    if not points:
        return ["(no points yet)"]
    columns = max(10, width - _LABEL - 2)
    dots_x, dots_y = (columns * 2, height * 4) if unicode else (columns, height)
    low_x, high_x = points[0][0], points[-1][0]
    means = _column_means(points, low_x, high_x, dots_x)
    low_y, high_y = min(means.values()), max(means.values())
    grid = [[False] * dots_x for _ in range(dots_y)]
    previous: tuple[int, int] | None = None
    for column, mean in sorted(means.items()):
        row = round((high_y - mean) / ((high_y - low_y) or 1) * (dots_y - 1))
        for x, y in _line(previous or (column, row), (column, row)):
            grid[y][x] = True
        previous = (column, row)
    rows = _characters(grid, columns, height, unicode)
    return [*_with_axis(rows, low_y, high_y, unicode), *_footer(low_x, high_x, columns, marks)]


def _column_means(
    points: Sequence[tuple[float, float]], low: float, high: float, columns: int
) -> dict[int, float]:
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        column = _column(x, low, high, columns)
        total, count = sums.get(column, (0.0, 0))
        sums[column] = (total + y, count + 1)
    return {column: total / count for column, (total, count) in sums.items()}


def _column(x: float, low: float, high: float, columns: int) -> int:
    return round((x - low) / ((high - low) or 1) * (columns - 1))


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots between two dots, both included."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [(round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count)) for i in range(count + 1)]


def _characters(grid: Sequence[Sequence[bool]], columns: int, height: int, unicode: bool) -> list[str]:
    if not unicode:
        return ["".join("*" if dot else " " for dot in row) for row in grid]
    return ["".join(_braille(grid, column, row) for column in range(columns)) for row in range(height)]


def _braille(grid: Sequence[Sequence[bool]], column: int, row: int) -> str:
    bits = sum(_DOTS[dx][dy] for dx in range(2) for dy in range(4) if grid[row * 4 + dy][column * 2 + dx])
    return chr(0x2800 + bits) if bits else " "


def _with_axis(rows: Sequence[str], low: float, high: float, unicode: bool) -> list[str]:
    """Numbers at the top, the middle and the bottom."""
    bar = "│" if unicode else "|"
    labels = {0: high, len(rows) // 2: high - (high - low) * (len(rows) // 2) / max(1, len(rows) - 1)}
    labels[len(rows) - 1] = low
    return [
        f"{labels[index]:>{_LABEL}.3g} {bar}{row}".rstrip()
        if index in labels
        else f"{'':{_LABEL}} {bar}{row}".rstrip()
        for index, row in enumerate(rows)
    ]


def _footer(low: float, high: float, columns: int, marks: Sequence[float]) -> list[str]:
    pad = " " * (_LABEL + 2)
    ticks = [" "] * columns
    for mark in marks:
        if low <= mark <= high:
            ticks[_column(mark, low, high, columns)] = "^"
    left, right = f"{low:g}", f"{high:g}"
    numbers = left + right.rjust(columns - len(left))
    under = pad + "".join(ticks).rstrip()
    return [*([under] if under.strip() else []), pad + numbers]
