"""How far a measurement is: bars on stderr, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Bar = Callable[[int | None, str], AbstractContextManager[Callable[[int], Any]]]


@contextmanager
def bar(total: int | None, unit: str = "tokens") -> Iterator[Callable[[int], Any]]:
    """A bar that is told how many more are done.

    Args:
        total (int): how many there are, if that is known.
        unit (str): what they are.
    """
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", leave=False, disable=None) as shown:
        yield shown.update


@contextmanager
def no_bar(total: int | None, unit: str = "tokens") -> Iterator[Callable[[int], Any]]:
    """Shows nothing."""
    yield lambda done: None
