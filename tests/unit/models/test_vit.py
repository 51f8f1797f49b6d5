import pytest
import torch

from models.backbones.vit import resampled
from models.build import build


def test_resampling_to_the_same_grid_is_the_embedding_itself() -> None:
    embedding = torch.randn(1, 17, 3)
    assert resampled(embedding, 4) is embedding


@pytest.mark.parametrize("side", [2, 3, 7])
def test_resampling_is_bicubic_and_keeps_the_class_token(side: int) -> None:
    embedding = torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(0))
    grid = embedding[:, 1:].transpose(1, 2).reshape(1, 3, 4, 4)
    expected = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    got = resampled(embedding, side)
    assert torch.equal(got[:, 0], embedding[:, 0])
    torch.testing.assert_close(got[:, 1:], expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_the_stored_embedding_keeps_its_shape_at_another_resolution() -> None:
    network = build("tiny_vit", n_classes=2)
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    network(torch.zeros(1, 3, 48, 48)).sum().backward()
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == before
    gradient = network.get_parameter("embed.pos_embedding").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
