"""Small pictures in a figure."""

import base64
import dataclasses
import io
import json
import math
import re

import numpy
import pytest

from curvcli.errors import CurvError
from curvcli.report import Axis, Figure, Report, Result, Tiles
from curvcli.sinks import figure
from curvcli.sinks.layout import Block

GREY = Tiles(("3", "17"), (1, 2, 3), ((-2.0, 0, 1, 2, 1, 0), (0.5,) * 6), Axis("weight"))
COLOUR = Tiles(("a",), (3, 1, 2), ((1.0, -1.0, 0.0, 0.0, -0.5, math.inf),), Axis("weight"))


def drawn(tiles: Tiles) -> Figure:
    return Figure("weights", "Weights", Axis(""), Axis("units"), (), tiles=tiles)


def images(tiles: Tiles) -> list[numpy.ndarray]:
    """Give the corners of what was drawn of each pixel, as red, green and blue."""
    from matplotlib.image import imread

    found = re.findall(r"base64,\s*([^\"]+)\"", figure.svg([drawn(tiles)]))
    pictures = [imread(io.BytesIO(base64.b64decode(text)), format="png") for text in found]
    _, height, width = tiles.shape
    return [p[:: p.shape[0] // height, :: p.shape[1] // width, :3] for p in pictures]


def test_a_picture_is_the_right_way_up() -> None:
    first, second, *_ = images(GREY)
    reddish = first[..., 0] - first[..., 2]
    assert first.shape == (2, 3, 3)
    assert numpy.abs(reddish[[0, 1], [1, 2]]).max() < 0.02  # zero is white
    assert first[0, 1].min() > 0.95
    assert reddish[0, 0] < -0.2 < 0.2 < reddish[1, 0]
    assert reddish[0, 2] == reddish[1, 1] > 0
    assert numpy.ptp(second, axis=(0, 1)).max() == 0
    text = figure.svg([drawn(GREY)])
    for word in (">3<", ">17<", ">weight<", "Weights", "units"):
        assert word in text
    assert text == figure.svg([drawn(GREY)])


def test_three_channels_are_a_colour() -> None:
    (picture,) = images(COLOUR)
    numpy.testing.assert_allclose(picture[0], [[1, 0.5, 0.25], [0, 0.5, 0]], atol=0.01)
    assert ">weight<" not in figure.svg([drawn(COLOUR)])


@pytest.mark.parametrize("count", [0, 1, 12, 13, 60])
@pytest.mark.parametrize("value", [None, 0.0, math.nan, math.inf])
def test_any_numbers_can_be_drawn(count: int, value: float | None) -> None:
    labels = tuple(map(str, range(count)))
    for channels in (1, 3):
        shape = (channels, 2, 2)
        tiles = Tiles(labels, shape, ((value,) * (4 * channels),) * count, Axis("weight"))
        assert figure.svg([drawn(tiles)]).count("<image") == count + (channels == 1)
    # A row more is higher by its pictures and their labels.
    more = dataclasses.replace(
        tiles, labels=labels + labels[:1] * 12, values=tiles.values + tiles.values[:1] * 12
    )
    if count in (12, 60):
        assert Block.of(drawn(more)).height > Block.of(drawn(tiles)).height + 30


def test_a_document_holds_them() -> None:
    report = Report({}, {"a": Result("a", "?", "!", figures=(drawn(GREY), drawn(COLOUR)))})
    again = Report.from_json(report.to_json())
    assert again.results["a"].figures == report.results["a"].figures
    assert again.to_json() == report.to_json()


@pytest.mark.parametrize(
    "spoiled",
    [{"labels": [1, 2]}, {"values": [[1.0]]}, {"shape": [1, 2]}, {"shape": [2, 1, 3]},
     {"shape": [1.0, 2, 3]}, {"shape": [1, -2, -3]}, {"labels": ["a"]}],
)  # fmt: skip
def test_tiles_of_unknown_origin_are_refused(spoiled: dict[str, object]) -> None:
    report = Report({}, {"t": Result("t", "?", "!", figures=(drawn(GREY),))})
    document = json.loads(report.to_json())
    document["results"]["t"]["figures"][0]["tiles"] |= spoiled
    with pytest.raises(CurvError, match="garbles"):
        Report.from_json(json.dumps(document))
