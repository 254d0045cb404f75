"""What `--help` shows of a subcommand beside its options: what it is for, and examples."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any

_WIDTH = 88


def add_command(
    commands: Any, name: str, summary: str, about: str, shown: Mapping[str, str]
) -> argparse.ArgumentParser:
    """Add a subcommand whose help a newcomer can start from.

    Args:
        commands: What `add_subparsers` returned.
        name: The subcommand.
        summary: A line for the list of commands.
        about: A paragraph for its own help.
        shown: Commands to type, each with what it does.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(about, _WIDTH),
        epilog=examples(shown),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def examples(shown: Mapping[str, str]) -> str:
    """Return the end of a help text: commands to type, each under what it does."""
    lines = [f"  # {what}\n  {command}" for command, what in shown.items()]
    return "examples:\n" + "\n\n".join(lines)
