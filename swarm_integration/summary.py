"""The inference summary that is printed after a run."""

from __future__ import annotations

from typing import Any


def render(
    stats: dict[str, Any],
    *,
    slots: dict[str, int],
    determinism: str,
    journal_broken: str | None = None,
) -> str:
    """Return the summary as lines of text.

    Args:
        stats: `RunStats.summary()` with `batches`, `rounds` and `wall_s`.
        slots: Slots by backend.
        determinism: What is known of the backends' determinism.
        journal_broken: Why answers are not kept any more, or None.
    """
    wall_s = stats["wall_s"]
    per_s = stats["completion_tokens"] / wall_s if wall_s > 0 else 0.0
    rows = [
        (
            "requests",
            f"{stats['requests']} ({stats['answered_ok']} valid, {stats['invalid']} invalid, "
            f"{stats['failures']} failed)",
        ),
        ("from journal", f"{stats['recalled']}"),
        ("retries", f"{stats['retries']}, asked again: {stats['reasks']}"),
        ("rounds, batches", f"{stats['rounds']} rounds, {stats['batches']} batches"),
        ("slots", f"{sum(slots.values())}, most in flight: {stats['max_in_flight']}"),
        ("queue", _time(stats["queue_ms"])),
        ("prefill", _time(stats["prefill_ms"])),
        ("decode", _time(stats["decode_ms"])),
        (
            "tokens",
            f"{stats['prompt_tokens']} in ({stats['cached_tokens']} from cache), "
            f"{stats['completion_tokens']} out, {per_s:.1f} out per second",
        ),
        ("wall time", f"{wall_s:.2f} s"),
        ("determinism", determinism),
    ]
    if stats["server_restarts"]:
        rows.append(("server restarts", f"{stats['server_restarts']}"))
    lines = [f"  {name:<16} {value}" for name, value in rows]
    if journal_broken is not None:
        lines.append(f"  WARNING: answers are not kept any more: {journal_broken}")
    return "\n".join(["Inference", "-" * 60, *lines])


def _time(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "not reported by the backend"
    return f"median {spread['median']:.1f} ms, p95 {spread['p95']:.1f} ms"
