"""examples/replace_backbone.py: the pyramid gives of the new backbone what it gave of the old one."""

import pytest
import timm
import torch

from tests.scripts import load_script
from tests.tiny_training import drawn_coco, tiny_checkpoint
from transformers_glipv2 import GLIPv2Config, GLIPv2ForPreTraining

replace_backbone = load_script("examples/replace_backbone.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replace")
    torch.manual_seed(0)
    tiny_checkpoint(folder / "model", backbone_config=GLIPv2Config.from_size("nano").backbone_config)
    drawn_coco(folder / "coco", train=8, val=2)
    lines = ["sources:", "  - {kind: coco, path: coco, split: train}", "sizes: [96]", "max_size: 128"]
    (folder / "data.yaml").write_text("\n".join(lines))
    return folder


def replaced(folder, output: str, weights: list[torch.Tensor]) -> GLIPv2ForPreTraining:
    """The model after the script; the ImageNet weights have other names in the same order."""
    torch.save({f"other.{index}": tensor for index, tensor in enumerate(weights)}, folder / f"{output}.pth")
    options = {"model": folder / "model", "data": folder / "data.yaml", "output": folder / output}
    options |= {"imagenet_weights": folder / f"{output}.pth", "num_batches": 6}
    replace_backbone.main([f"--{name}={value}" for name, value in options.items()])
    return GLIPv2ForPreTraining.from_pretrained(folder / output).eval()


@torch.no_grad()
def test_the_same_backbone_is_fitted_exactly(folder, capsys):
    before = GLIPv2ForPreTraining.from_pretrained(folder / "model").eval()
    (features,) = before.model.backbone.children()
    own = features.state_dict()
    network = timm.create_model("tf_efficientnet_lite0").state_dict()
    after = replaced(folder, "same", [own.get(name, tensor) for name, tensor in network.items()])
    pixels = torch.rand(1, 3, 96, 128)
    maps = before.model.backbone(pixels).feature_maps
    torch.testing.assert_close(after.model.backbone(pixels).feature_maps, maps)
    for level in range(2):
        old, new = (model.model.neck.lateral_convs[level](maps[level]) for model in (before, after))
        assert (new - old).square().mean() < 0.02 * (old - old.mean((0, 2, 3), keepdim=True)).square().mean()
    assert "level 0: 100 %" in capsys.readouterr().out


@torch.no_grad()
def test_another_backbone_takes_its_place(folder):
    network = timm.create_model("tf_efficientnet_lite0").state_dict()
    after = replaced(folder, "other", list(network.values()))
    (features,) = after.model.backbone.children()
    for name, tensor in features.state_dict().items():
        assert torch.equal(tensor, network[name]), name
    before = GLIPv2ForPreTraining.from_pretrained(folder / "model")
    assert torch.equal(after.model.neck.p6.weight, before.model.neck.p6.weight)
    assert not torch.equal(after.model.neck.lateral_convs[0].weight, before.model.neck.lateral_convs[0].weight)
