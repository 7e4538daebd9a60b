"""Tables for people, in whatever width their terminal has: no name and no number is ever cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

BELOW = "problem"
"""What is said in a line of its own below the table, after the name of the row."""
_UNBOUNDED = 1 << 16


@dataclass(frozen=True)
class Grid:
    """Rows of cells by column. In a narrow console headers are folded first, then the columns of ``least`` go, the
    first of them first, and then the columns for which there is no room stand below, beside the rows' names again."""

    title: str
    rows: Sequence[Mapping[str, str]]
    numeric: frozenset[str] = frozenset()
    least: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [name for name in dict.fromkeys(name for row in self.rows for name in row) if name != BELOW]
        whole = self._table(columns, folded=False)
        if _fits(whole, console, options):
            yield whole
        else:
            yield from self._narrow(columns, console, options)
        for row in self.rows:
            if problem := row.get(BELOW):
                name = row[columns[0]]
                yield Text(problem if problem.startswith(f"{name}: ") else f"{name}: {problem}", overflow="fold")

    def _narrow(self, columns: list[str], console: Console, options: ConsoleOptions) -> RenderResult:
        left_out: list[str] = []
        for name in [each for each in self.least if each in columns]:
            if _fits(self._table(columns, folded=True), console, options):
                break
            columns.remove(name)
            left_out.append(name)
        names = self._names(columns)
        part = [*names, *columns[len(names) : len(names) + 1]]
        title = self.title
        for name in columns[len(part) :]:
            if not _fits(self._table([*part, name], folded=True), console, options):
                yield self._part(part, title, console, options)
                part, title = list(names), ""
            part.append(name)
        yield self._part(part, title, console, options)
        if left_out:
            yield Text(f"no room for {', '.join(left_out)}", style="dim", overflow="fold")

    def _part(self, columns: list[str], title: str, console: Console, options: ConsoleOptions) -> Table:
        table = self._table(columns, folded=True, title=title)
        return table if _fits(table, console, options) else self._table(columns, folded=True, title=title, wrapped=True)

    def _names(self, columns: list[str]) -> list[str]:
        """The columns that say what a row is of: one or two of text that come first."""
        numeric = [name in self.numeric for name in columns]
        return columns[: 2 if len(columns) > 2 and not numeric[1] else 1]

    def _table(self, columns: list[str], *, folded: bool, title: str | None = None, wrapped: bool = False) -> Table:
        shown = self.title if title is None else title
        table = Table(
            title=Text(shown) if shown else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for name in columns:
            numeric = name in self.numeric
            width = max((len(row.get(name, "")) for row in self.rows), default=0)
            table.add_column(
                Text(_folded(name, width) if folded else name),
                justify="right" if numeric else "left",
                no_wrap=numeric or not wrapped,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(Text(row.get(name, "")) for name in columns))
        return table


def _fits(table: Table, console: Console, options: ConsoleOptions) -> bool:
    return console.measure(table, options=options.update(width=_UNBOUNDED)).maximum <= options.max_width


def _folded(name: str, width: int) -> str:
    """A header in lines that are no wider than its column's cells, as far as its words allow."""
    lines: list[str] = []
    for word in name.split("_"):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f"_{word}"
        else:
            lines.append(word)
    return "\n".join(lines)
