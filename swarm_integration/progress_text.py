"""How a snapshot of a run reads: as some lines for a terminal, or as one plain line.

Pure: what is shown follows from the snapshot and the console's width alone. `rich` is
imported where it is used, since plain lines do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from swarm_integration.progress import LaneState, Snapshot

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

MOST_LANES = 6
"""Backends that get a line of their own."""


def render(snapshot: Snapshot, console: Console) -> Group:
    """Return the live view: each line fits the console's width."""
    from rich.console import Group

    rows = [_run_row(snapshot, console), _step_row(snapshot, console)]
    if len(snapshot.lanes) > 1:
        rows += [_lane_row(lane, console) for lane in snapshot.lanes[:MOST_LANES]]
        if len(snapshot.lanes) > MOST_LANES:
            more = f"  and {len(snapshot.lanes) - MOST_LANES} more backends"
            rows.append(_text(console, (more, "dim")))
    return Group(*rows)


def _run_row(snapshot: Snapshot, console: Console) -> Text:
    head = f"{_place(snapshot)} "
    tail = f" {round(100 * snapshot.share):>3} %  {clock(snapshot.elapsed_s)}  {_left(snapshot)}"
    room = console.width - len(head) - len(tail) - 1
    if room < 5:
        return _text(console, (head, "bold"), (tail, ""))
    done = int(room * snapshot.share)
    full, empty = ("━", "─") if _is_utf(console) else ("#", ".")
    return _text(
        console, (head, "bold"), (full * done, "green"), (empty * (room - done), "dim"), (tail, "")
    )


def _step_row(snapshot: Snapshot, console: Console) -> Text:
    parts: list[tuple[str, str]] = [(_requests(snapshot), "")]
    for name, count, style in _counts(snapshot):
        parts += [("  ", ""), (f"{name} {count}", style)]
    return _text(console, *parts)


def _lane_row(lane: LaneState, console: Console) -> Text:
    return _text(
        console, (f"  slots {lane.busy}/{lane.slots}  queue {lane.waiting}  {lane.name}", "dim")
    )


def _counts(snapshot: Snapshot) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and style of what is always told, and of what there is."""
    yield "queue", sum(lane.waiting for lane in snapshot.lanes), ""
    yield "slots", _slots(snapshot), ""
    rate = snapshot.tokens_per_s
    yield "tokens/s", "-" if rate is None else f"{rate:.1f}", ""
    yield "retries", snapshot.retries, "yellow" if snapshot.retries else ""
    yield "failed", snapshot.failures, "bold red" if snapshot.failures else ""
    if snapshot.reasks:
        yield "asked again", snapshot.reasks, "yellow"
    if snapshot.recalled:
        yield "from journal", snapshot.recalled, ""


def plain_line(snapshot: Snapshot) -> str:
    """Return the run as one line of text."""
    counts = [f"{name} {count}" for name, count, _ in _counts(snapshot)]
    return "  ".join([_place(snapshot), _requests(snapshot), *counts, _left(snapshot)])


def _place(snapshot: Snapshot) -> str:
    return (
        f"epoch {snapshot.epoch}/{snapshot.epochs} step {snapshot.step}/{snapshot.steps_per_epoch}"
    )


def _requests(snapshot: Snapshot) -> str:
    of = "" if snapshot.expected is None else f"/{snapshot.expected}"
    return f"requests {snapshot.settled}{of}"


def _slots(snapshot: Snapshot) -> str:
    busy = sum(lane.busy for lane in snapshot.lanes)
    return f"{busy}/{sum(lane.slots for lane in snapshot.lanes)}"


def _left(snapshot: Snapshot) -> str:
    return f"left {'-' if snapshot.left_s is None else clock(snapshot.left_s)}"


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds: `0:09`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _text(console: Console, *parts: tuple[str, str]) -> Text:
    from rich.text import Text

    overflow: Literal["ellipsis", "crop"] = "ellipsis" if _is_utf(console) else "crop"
    return Text.assemble(*parts, no_wrap=True, overflow=overflow)


def _is_utf(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
