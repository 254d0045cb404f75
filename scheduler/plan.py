"""The pure decision: in which order waiting requests run.

Requests are planned in windows (at most `max_batch`, in order of arrival), the next one when
nothing of the last can run now. Requests with a common prompt prefix stay together, since a
slot that has just read the prefix need not read it again (`places.py`). In a group the longest
work starts first, since what starts last ends last. Where one slot alone answers a group, that
makes no difference, and requests stand by their text, so that neighbours share more than the
prefix. No clock, no I/O, no randomness.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from scheduler.types import Request

T = TypeVar("T", bound=Hashable)

PREFILL_CHARS_PER_DECODE_TOKEN = 40
"""How many prompt characters are read in the time one token is written.

A measure for ordering only: 1,000 tokens/s of prefill against 100 of decode at
four characters a token.
"""


def cost(request: Request) -> int:
    """Return how much work `request` is at most, in prompt characters."""
    return request.prompt_chars + PREFILL_CHARS_PER_DECODE_TOKEN * request.sampling.max_tokens


class Plan(Generic[T]):
    """Requests in groups of one prompt prefix, ordered, from which slots take.

    Items leave from the front or from anywhere, each in constant time: hence ordered
    dictionaries, where plain ones would look for their first item from the beginning again.

    Args:
        window: What is planned first, in order of arrival.
        request_of: The request behind an item.
        by_text: Whether one slot at a time answers a group, so that its order may follow the texts.
    """

    def __init__(
        self,
        window: Iterable[T] = (),
        *,
        request_of: Callable[[T], Request],
        by_text: bool = False,
    ) -> None:
        self._request_of = request_of
        self._by_text = by_text
        self._groups: dict[str, OrderedDict[T, None]] = {}
        self._waiting: OrderedDict[str, int] = OrderedDict()
        self._size = 0
        self.add(window)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name[:6]}:{count}" for name, count in self._waiting.items())
        return f"<Plan {self._size} in [{sizes}]>"

    def __len__(self) -> int:
        return self._size

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many items each group has, those of a window with more work first."""
        return self._waiting

    def add(self, window: Iterable[T]) -> None:
        """Plan a window, in order of arrival; what is planned already comes before it."""
        grouped: dict[str, list[T]] = {}
        for item in window:
            grouped.setdefault(self._request_of(item).group, []).append(item)

        def work(items: list[T]) -> int:
            return sum(cost(self._request_of(item)) for item in items)

        for name, items in sorted(grouped.items(), key=lambda entry: -work(entry[1])):
            planned = sorted(items, key=self._key)
            self._groups.setdefault(name, OrderedDict()).update(dict.fromkeys(planned))
            self._waiting[name] = len(self._groups[name])
            self._size += len(items)

    def _key(self, item: T) -> tuple[int | str, ...]:
        """Return by what the items of a group are ordered, the first one lowest."""
        request = self._request_of(item)
        if self._by_text:
            return tuple(message.content for message in request.messages)
        return (-cost(request),)

    def take(self, group: str) -> T:
        """Remove and return the item of `group` that should run next.

        Raises:
            LookupError: There is none of that group.
        """
        item, _ = self._groups[group].popitem(last=False)
        self._count_down(group)
        return item

    def withdraw(self, item: T) -> bool:
        """Remove `item`; return whether it was here."""
        name = self._request_of(item).group
        if item not in self._groups.get(name, ()):
            return False
        del self._groups[name][item]
        self._count_down(name)
        return True

    def _count_down(self, group: str) -> None:
        self._size -= 1
        self._waiting[group] -= 1
        if not self._waiting[group]:
            del self._groups[group], self._waiting[group]
