"""The mask head: regions, both extractors and the classifier equal the original's; targets and regions of training."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import tiny_config
from transformers_glipv2.boxes import box_iou_inclusive
from transformers_glipv2.conversion.glip_original_names import translate
from transformers_glipv2.layers import mask_head
from transformers_glipv2.layers.mask_head import (
    MATCH_IOU,
    PREDICTED_BOXES_PER_OBJECT,
    GLIPv2MaskHead,
    check_regions,
    mask_loss,
    mask_targets,
    mean_weights,
    pool_regions,
    roi_levels,
    training_regions,
)
from transformers_glipv2.layers.paste_masks import instance_masks

STRIDES = (8, 16, 32, 64, 128)
FILES = {"fcn": "mask_fcn_fpn", "hourglass": "mask_hourglass_fused"}
WEIGHTS = {"fcn": "mask_state", "hourglass": "mask_state_hourglass_fused_roi_heads_only"}


def close(one: torch.Tensor, other: torch.Tensor):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=FILES)
def extractor(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def golden(reference_dir, extractor) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / f"{FILES[extractor]}.safetensors")


@pytest.fixture(scope="module")
def maps(golden) -> tuple[torch.Tensor, ...]:
    return tuple(golden[f"mask.input.P{level}"] for level in range(3, 8))


@pytest.fixture(scope="module")
def head(reference_dir, extractor) -> GLIPv2MaskHead:
    config = tiny_config(
        d_model=64,
        mask_dim=64,
        mask_extractor=extractor,
        mask_num_convs={"fcn": 4, "hourglass": 2}[extractor],
        text_config={"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4},
        max_text_length=256,
    )
    head = GLIPv2MaskHead(config).eval()
    weights = translate(load_file(reference_dir / f"{WEIGHTS[extractor]}.safetensors")).state
    prefix = "mask_head."
    head.load_state_dict({name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)})
    return head


# The original's numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, boxes", [("pooler.pooled", "pooler.boxes"), ("mask.pooled", "det.boxes")])
def test_levels_and_pooling(golden, maps, name, boxes):
    close(pool_regions(maps, [golden[boxes]], STRIDES, 14), golden[name])


@torch.no_grad()
def test_extractor(golden, head):
    close(head.extractor(golden["mask.pooled"]), golden["mask.features"])


@torch.no_grad()
def test_words_of_a_label_meet_pixels(golden, head, maps):
    text = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    positive_map = torch.zeros(20, 9)
    positive_map[:, 2] = 0.5
    positive_map[7:, 5] = 0.5
    words, bias = head.project_tokens(text)
    pixels = head.pixels(golden["mask.pooled"])
    every_word = torch.einsum("rchw,tc->rthw", pixels, words[0]) + bias[0][:, None, None]
    expected = torch.stack([logits[row > 0].mean(0) for logits, row in zip(every_word, positive_map, strict=True)])
    close(head(maps, [golden["det.boxes"]], text, [positive_map]), expected)


def test_positive_boxes_are_the_originals(golden):
    overlap = box_iou_inclusive(golden["train.proposals"], golden["train.gt_boxes"]).amax(1)
    assert torch.equal(overlap >= MATCH_IOU, golden["train.proposal_positive"].bool())


def test_targets_from_pixels_are_near_those_from_polygons(reference_dir, golden, extractor):
    """The original draws polygons at 28 x 28; pixels of a 256 x 341 image hold less than that of its small boxes."""
    coco_mask = pytest.importorskip("pycocotools.mask")
    key = {"fcn": "fcn_fpn", "hourglass": "hourglass_fused"}[extractor]
    polygons = json.loads((reference_dir / "mask.json").read_text())[key]["train"]["polygons"]
    masks = torch.stack(
        [torch.from_numpy(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(own, 256, 341)))) for own in polygons]
    )
    boxes = golden["train.proposals"][golden["train.proposal_positive"].bool()]
    owners = box_iou_inclusive(boxes, golden["train.gt_boxes"]).argmax(1)
    ours = mask_targets(masks, boxes, owners, torch.tensor([256, 341]), 28).bool()
    theirs = golden["train.mask_targets"].bool()
    overlap = (ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))
    assert overlap.min() > 0.92
    assert overlap.mean() > 0.97


# Regions -------------------------------------------------------------------------------------------------------------


def test_levels_follow_the_size():
    sides = torch.tensor([1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 900.0, 1800.0, 9000.0])
    boxes = torch.stack([torch.zeros(10), torch.zeros(10), sides - 1, sides - 1], dim=1)
    assert roi_levels(boxes, STRIDES).tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 4, 4]
    # A pyramid that begins elsewhere gives the same strides.
    assert roi_levels(boxes, STRIDES[1:]).tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3, 3]


def test_images_are_pooled_apart():
    generator = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(3, 4, 64 // 2**i, 80 // 2**i, generator=generator) for i in range(5))
    boxes = [
        torch.tensor([[3.0, 4.0, 300.0, 400.0], [10.0, 10.0, 30.0, 20.0], [0.0, 0.0, 600.0, 500.0]]),
        torch.zeros(0, 4),
        torch.tensor([[5.0, 6.0, 90.0, 70.0]]),
    ]
    together = pool_regions(maps, boxes, STRIDES, 7)
    alone = [pool_regions([level[i : i + 1] for level in maps], [own], STRIDES, 7) for i, own in enumerate(boxes)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert pool_regions(maps, [boxes[1]] * 3, STRIDES, 7).shape == (0, 4, 7, 7)


def test_half_precision_maps_keep_exact_boxes():
    maps = tuple(torch.randn(1, 4, 64 // 2**i, 80 // 2**i) for i in range(5))
    box = [torch.tensor([[301.3, 200.7, 340.9, 260.2]])]
    pooled = pool_regions([level.bfloat16() for level in maps], box, STRIDES, 7)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), pool_regions(maps, box, STRIDES, 7), atol=0.05, rtol=0.05)


# Training ------------------------------------------------------------------------------------------------------------


def disc(height: int, width: int) -> torch.Tensor:
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return ((y - height / 2) / (0.4 * height)) ** 2 + ((x - width / 2) / (0.3 * width)) ** 2 < 1


@pytest.mark.parametrize("scale", [1, 2])
def test_targets_pasted_back_give_the_mask(scale):
    """Cutting out and pasting agree on where a box's pixels are, whatever the resolution of masks."""
    mask = disc(120 * scale, 160 * scale)
    rows, columns = mask.any(1).nonzero().flatten() / scale, mask.any(0).nonzero().flatten() / scale
    box = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()])[None].floor()
    targets = mask_targets(mask[None], box, torch.tensor([0]), torch.tensor([120, 160]), 28)
    assert set(targets.unique().tolist()) == {0.0, 1.0}
    pasted = instance_masks(20 * targets - 10, box, (120, 160))[0]
    small = mask[::scale, ::scale]
    assert (pasted & small).sum() / (pasted | small).sum() > 0.96


def test_targets_of_no_box():
    none, owners = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert mask_targets(torch.zeros(0, 9, 9), none, owners, torch.tensor([9, 9]), 28).shape == (0, 28, 28)


def test_targets_are_those_of_the_own_object(monkeypatch):
    """Whatever the number of masks that are held at once."""
    masks = torch.stack([disc(60, 80), torch.ones(60, 80, dtype=torch.bool), torch.zeros(60, 80, dtype=torch.bool)])
    boxes, owners = torch.tensor([[5.0, 5.0, 70.0, 50.0]]).repeat(4, 1), torch.tensor([2, 0, 1, 0])
    size = torch.tensor([60, 80])
    together = mask_targets(masks, boxes, owners, size, 14)
    assert together.mean((1, 2))[[0, 2]].tolist() == [0, 1]
    assert together[1].equal(together[3]) and 0 < together[1].mean() < 1
    monkeypatch.setattr(mask_head, "MASK_PIXELS_AT_ONCE", 1)
    assert mask_targets(masks, boxes, owners, size, 14).equal(together)


def test_pooling_without_reading_the_boxes(monkeypatch):
    """As on a GPU, which is not waited for."""
    generator = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(2, 4, 64 // 2**i, 80 // 2**i, generator=generator) for i in range(5))
    boxes = [
        torch.tensor([[3.0, 4.0, 300.0, 400.0], [10.0, 10.0, 30.0, 20.0]]),
        torch.tensor([[5.0, 6.0, 590.0, 570.0]]),
    ]
    read = pool_regions(maps, boxes, STRIDES, 7)
    monkeypatch.setattr(mask_head, "can_read", lambda tensor: False)
    torch.testing.assert_close(pool_regions(maps, boxes, STRIDES, 7), read)


def test_regions_are_objects_and_their_best_matches():
    gt_boxes = torch.tensor([[0.0, 0.0, 99.0, 99.0], [200.0, 0.0, 299.0, 99.0]])
    shifts = torch.arange(6.0)[:, None] * 4
    matches = gt_boxes[:1] + shifts
    far = torch.tensor([[100.0, 300.0, 199.0, 399.0]])
    pred_boxes = torch.cat([matches, far, gt_boxes[1:] + 1])
    scores = torch.zeros(8, 2)
    scores[:, 0] = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 1.0, 1.0])
    boxes, owners, is_region = training_regions(gt_boxes, pred_boxes, scores)
    assert is_region.tolist() == [True] * 6 + [False] * 2
    boxes, owners = boxes[is_region], owners[is_region]
    found = sorted((owner, *box) for owner, box in zip(owners.tolist(), boxes.tolist(), strict=True))
    # The sixth is shifted too far: it overlaps by 0.47.
    expected = [gt_boxes[0], *pred_boxes[[1, 3, 4]]]
    assert found == sorted(
        [(0, *box.tolist()) for box in expected] + [(1, *gt_boxes[1].tolist()), (1, *pred_boxes[7].tolist())]
    )
    assert PREDICTED_BOXES_PER_OBJECT == 3


def test_regions_are_bounded_and_take_from_all():
    gt_boxes = torch.tensor([[float(x), 0.0, x + 9.0, 9.0] for x in range(0, 500, 10)])
    pred_boxes = gt_boxes.repeat(4, 1)
    _, owners, is_region = training_regions(gt_boxes, pred_boxes, torch.ones(200, 50), limit=60)
    assert is_region.all()
    assert len(owners) == 60
    assert set(owners.tolist()) == set(range(50))
    _, owners, _ = training_regions(gt_boxes, pred_boxes, torch.ones(200, 50), limit=20)
    assert len(set(owners.tolist())) == 20


def test_regions_without_objects_or_predictions():
    boxes, owners, _ = training_regions(torch.zeros(0, 4), torch.rand(5, 4), torch.zeros(5, 0))
    assert boxes.shape == (0, 4)
    assert len(owners) == 0
    boxes, owners, _ = training_regions(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.zeros(0, 4), torch.zeros(0, 1))
    assert boxes.tolist() == [[0.0, 0.0, 9.0, 9.0]]


def test_loss_by_hand():
    logits = torch.tensor([[[0.0, 2.0]], [[-1.0, 0.5]]], requires_grad=True)
    targets = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    probabilities = logits.sigmoid()
    expected = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).mean()
    torch.testing.assert_close(mask_loss(logits, targets), expected)
    assert mask_loss(logits[:0], targets[:0]) == 0


def test_weights_are_means_over_words():
    positive_map = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.3, 0.0, 0.0]])
    assert mean_weights(positive_map).tolist() == [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boxes, positive_maps, message",
    [
        ([torch.zeros(1, 4)], [torch.ones(1, 5)], "for 2 images"),
        ([torch.zeros(1, 4)] * 2, [torch.ones(1, 5), torch.ones(2, 5)], r"positive_maps\[1\]"),
        ([torch.zeros(1, 4)] * 2, [torch.ones(1, 5), torch.zeros(1, 5)], "no token"),
        ([torch.zeros(1, 3)] * 2, [torch.ones(1, 5)] * 2, r"boxes\[0\]"),
    ],
)
def test_regions_that_do_not_fit_are_refused(boxes, positive_maps, message):
    with pytest.raises(ValueError, match=message):
        check_regions(boxes, positive_maps, 2, 5)


def test_hourglasses_keep_their_channels():
    with pytest.raises(ValueError, match="mask_dim"):
        GLIPv2MaskHead(tiny_config(mask_extractor="hourglass", mask_dim=48))
