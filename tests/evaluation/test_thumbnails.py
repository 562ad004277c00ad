from __future__ import annotations

import torch

from dmlscale.evaluation.thumbnails import thumbnail


def test_pictures_stay_as_they_are() -> None:
    picture = torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5)
    assert thumbnail(picture).tolist() == picture.permute(1, 2, 0).tolist()
    assert thumbnail(picture[:1]).tolist() == picture[0].tolist()


def test_views_stand_side_by_side() -> None:
    views = torch.arange(120, dtype=torch.uint8).reshape(2, 3, 4, 5)
    drawn = thumbnail(views)
    assert drawn.shape == (4, 10, 3)
    assert drawn[:, 5:].tolist() == thumbnail(views[1]).tolist()
    assert thumbnail(views[:, :1]).shape == (4, 10)


def test_log_mels_reach_from_black_to_white_with_low_bands_at_the_bottom() -> None:
    assert thumbnail(torch.tensor([[[-3.0, -3.0], [-1.0, 0.0]]])).tolist() == [[170, 255], [0, 0]]
    assert thumbnail(torch.full((2, 3, 4), 7.0)).tolist() == [[0] * 4] * 3


def test_a_vector_is_a_square() -> None:
    assert thumbnail(torch.tensor([0.0, 1.0, 0.5, 0.2, 0.0])).tolist() == [[0, 255, 128], [51, 0, 0], [0, 0, 0]]
