"""Stands for the batches of a spec without data or loss, for what is asked of the state alone."""

from typing import Any, NoReturn

from curvcli.batches import Batch, Loss
from curvcli.errors import CurvError


class Absent(tuple[Batch, ...]):
    """Batches that are not there: false, and told as missing to whoever reaches for one.

    So an analysis may ask whether there are any, and one that does not ask is refused in the
    spec's own terms instead of finding an empty mean.
    """

    said: str
    key: str

    @classmethod
    def of(cls, where: str, key: str) -> "Absent":
        """Make them for the spec at `where`, which lacks `key`."""
        made = cls()
        made.said, made.key = f"{where}: there is no {key}:", key
        return made

    def __bool__(self) -> bool:
        """Say that there are none."""
        return False

    def _refuse(self, *_: Any) -> NoReturn:
        raise CurvError("E_SPEC", self.said, f"add {self.key}: to the spec")

    __iter__ = __len__ = __getitem__ = __add__ = __contains__ = _refuse

    @property
    def loss(self) -> Loss:
        """A loss that is as missing as they are."""
        return self._refuse
