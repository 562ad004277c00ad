import pytest
import torch
from torch import Tensor, nn

from dmlscale.data.types import Batch
from dmlscale.evaluation.embed import embed, raw_pixels


def _batches(sizes: list[int], side: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Batch(
            torch.randn(n, 3, side, side, generator=generator),
            torch.arange(n) % 2,
            torch.arange(start, start + n),
            {0: n},
        )
        for n, start in zip(sizes, starts, strict=True)
    ]


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(3)
        self.body = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(), nn.Linear(192, 5))

    def forward(self, images: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        return self.body(self.frozen(images)).to(torch.bfloat16)


def test_embeds_in_order_without_touching_the_model() -> None:
    model = _Model()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches, progress = _batches([4, 3, 1]), list[int]()
    result = embed(model, batches, torch.device("cpu"), progress=progress.append)
    assert result.embeddings.shape == (8, 5)
    assert result.embeddings.dtype == torch.float32
    assert not result.embeddings.requires_grad
    assert result.ids.tolist() == list(range(8))
    assert result.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert progress == [4, 7, 8]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert model.body.training
    assert not model.frozen.training


def test_modes_come_back_after_an_error() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        embed(model, _batches([2]), torch.device("cpu"))
    assert model.training


def test_no_batches_give_an_empty_share() -> None:
    result = embed(nn.Identity(), [], torch.device("cpu"))
    assert [tuple(tensor.shape) for tensor in result] == [(0, 0), (0,), (0,)]


def test_raw_pixels_are_averages_of_at_most_16_by_16() -> None:
    (batch,) = _batches([2], side=32)
    pooled = raw_pixels([batch]).embeddings
    assert pooled.shape == (2, 3 * 16 * 16)
    assert pooled[0, 0] == pytest.approx(float(batch.images[0, 0, :2, :2].mean()), abs=1e-6)
    (small,) = _batches([2], side=8)
    assert torch.equal(raw_pixels([small]).embeddings, small.images.flatten(1))


def test_raw_pixels_of_views_and_vectors() -> None:
    (batch,) = _batches([4], side=32)
    objects = batch._replace(images=batch.images.unflatten(0, (2, 2)), labels=batch.labels[:2], ids=batch.ids[:2])
    by_view = raw_pixels([batch]).embeddings
    assert torch.equal(raw_pixels([objects]).embeddings, by_view.reshape(2, -1))
    vectors = batch._replace(images=torch.randn(4, 7))
    assert torch.equal(raw_pixels([vectors]).embeddings, vectors.images)
