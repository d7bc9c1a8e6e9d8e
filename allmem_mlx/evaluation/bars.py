"""Progress bars, on a terminal only."""

from tqdm import tqdm


def bar(total: int | None = None, unit: str = "tokens") -> tqdm:
    """A bar on stderr that is gone at the end.

    Args:
        total (int): the number of units, if it is known.
        unit (str): the plural of what is counted.
    """
    return tqdm(total=total, unit=f" {unit}", leave=False, disable=None)
