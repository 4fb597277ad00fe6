"""Whether intervals hold points of their own: the largest matching between the two.

An interval holds consecutive ones of the sorted points, for which the greedy choice is optimal
[Glover 1967, doi:10.1002/nav.3800140304]: each point in turn goes to the interval that ends first.
"""

from torch import Tensor


def matched(centres: Tensor, radii: Tensor, points: Tensor) -> list[int | None]:
    """Give each interval a point within it that no other has; None where there is none left.

    `centres` and `radii` (k,), `points` (m,) ascending; what is given are indices of points.
    """
    low, high = (centres - radii).tolist(), (centres + radii).tolist()
    free = sorted(range(len(low)), key=high.__getitem__)
    out: list[int | None] = [None] * len(low)
    for j, point in enumerate(points.tolist()):
        for i in free:
            if low[i] <= point <= high[i]:
                out[i] = j
                free.remove(i)
                break
    return out
