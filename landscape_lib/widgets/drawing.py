"""Draw a pattern: in any page, where it becomes code, or with a kernel, where it can be fitted."""

import keyword
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import ArrayLike

from landscape_lib.mpo import patterns
from landscape_lib.widgets.html import Widget, assemble, text

_LARGEST = 24  # cells along a side: smaller ones would be too small for a finger


def drawing(pattern: ArrayLike, *, name: str = "pattern", caption: str | None = None) -> Widget:
    """Let the reader draw a pattern, and show the code that makes it.

    This works without a kernel: the code is to be copied into a cell.

    Args:
        pattern: where the drawing begins: two-dimensional, 2 to 24 cells a side, or rows of text;
            see ``patterns.from_drawing``.
        name: of the variable in the code.
        caption: a line below the code.

    Raises:
        TypeError: a pattern that is neither cells nor text, a name that is no text.
        ValueError: a pattern of another size, of other values than 0 and 1 or of one class only; a
            name that no variable can have.
    """
    low = _cells(pattern)
    if not text("name", name).isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"name: given {name!r}, expected the name of a variable")
    rows = ["".join(".#"[int(cell)] for cell in row) for row in low]
    before, after = f'{name} = ll.patterns.from_drawing("""\n', '\n""")'
    data = {"rows": rows, "before": before, "after": after}
    code = escape(before + "\n".join(rows) + after)
    below = (
        '<p class="lw-note"></p><div class="lw-buttons"></div>'
        f'<pre class="lw-code" tabindex="0" aria-label="code of the drawing">{code}</pre>'
    )
    return assemble("drawing", '<div class="lw-picture"></div>', [], below, data, caption)


def live_drawing(
    function: Callable[[patterns.Pattern], object], pattern: ArrayLike, *, button: str = "Fit"
) -> Any:
    """Let the reader draw a pattern and call a function with it; this needs a kernel.

    It needs ipywidgets 7 or 8.

    Args:
        function: what to call with the pattern, a new boolean array. What it prints or draws is
            shown below, its progress bars too, and an error as its message.
        pattern: where the drawing begins: two-dimensional, 2 to 24 cells a side, or rows of text;
            see ``patterns.from_drawing``.
        button: what is written on the button that calls the function. While it runs, the buttons
            are disabled.

    Returns:
        An ipywidgets box to show.

    Raises:
        TypeError: a function that cannot be called; a pattern that is neither cells nor text.
        ValueError: a pattern of another size, of other values than 0 and 1 or of one class only.
    """
    import ipywidgets

    if not callable(function):
        raise TypeError(f"function: given {type(function).__name__}, expected a function")
    low = _cells(pattern)
    clear = ipywidgets.Button(description="Clear")
    start = ipywidgets.Button(description=text("button", button), button_style="success")
    count, output = ipywidgets.Label(), ipywidgets.Output()
    side = "20px"
    # Shared by all cells: a page of fewer objects is a faster one.
    layout = ipywidgets.Layout(width=side, height=side, min_width=side, padding="0", margin="0")
    style = ipywidgets.ToggleButton().style
    cells = [
        ipywidgets.ToggleButton(
            value=bool(cell), tooltip=f"row {i}, column {j}", layout=layout, style=style
        )
        for (i, j), cell in np.ndenumerate(low)
    ]
    spread = ipywidgets.Layout(
        grid_template_columns=f"repeat({low.shape[1]}, {side})", grid_gap="1px"
    )

    def drawn() -> patterns.Pattern:
        return np.array([cell.value for cell in cells]).reshape(low.shape)

    def show(cell: Any) -> None:
        cell.button_style = "primary" if cell.value else ""
        count.value = f"Coloured cells are LOW: {drawn().sum()} of {low.size}."

    def erase(_: object) -> None:
        for cell in cells:
            cell.value = False

    def run(_: object) -> None:
        clear.disabled = start.disabled = True
        try:
            output.clear_output()
            # Figures wait for show(): the page may send messages meanwhile, and each would show
            # and close what is drawn so far.
            with output, plt.ioff():
                try:
                    function(patterns.from_drawing(drawn()))
                except Exception as error:
                    print(f"{type(error).__name__}: {error}")
                if "inline" in matplotlib.get_backend():
                    plt.show()
        finally:
            clear.disabled = start.disabled = False

    for cell in cells:
        show(cell)
        cell.observe(lambda change: show(change.owner), "value")
    clear.on_click(erase)
    start.on_click(run)
    grid = ipywidgets.GridBox(cells, layout=spread)
    return ipywidgets.VBox([grid, count, ipywidgets.HBox([clear, start]), output])


def _cells(pattern: ArrayLike) -> patterns.Pattern:
    """Check a pattern that can be drawn by hand."""
    low = patterns.from_drawing(pattern)
    if low.ndim != 2 or not all(2 <= side <= _LARGEST for side in low.shape):
        raise ValueError(
            f"pattern: given shape {low.shape}, expected two dimensions of 2 to {_LARGEST} cells"
        )
    return low
