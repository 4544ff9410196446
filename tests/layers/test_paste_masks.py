"""Masks in images: pasted as torchvision and the original do, encoded as pycocotools does, bounded in memory."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.models.detection.roi_heads import paste_masks_in_image

from transformers_glipv2.layers.paste_masks import (
    boxes_for_masks,
    encode_region,
    instance_masks,
    paste_regions,
    union_mask,
)

SIZE = (61, 87)
BOXES = torch.tensor(
    [
        [3.2, 5.9, 40.1, 50.6],
        [0.0, 0.0, 86.0, 60.0],  # the whole image
        [70.5, 40.0, 86.0, 60.0],  # its corner
        [-12.0, -7.5, 20.0, 200.0],  # leaves it
        [33.3, 21.0, 33.3, 21.0],  # one pixel
        [200.0, 10.0, 260.0, 30.0],  # not in it
    ]
)


def random_logits(count: int = len(BOXES), side: int = 28) -> torch.Tensor:
    return 3 * torch.randn(count, side, side, generator=torch.Generator().manual_seed(0))


def test_pasting_equals_torchvisions():
    logits = random_logits()
    expected = paste_masks_in_image(logits.sigmoid()[:, None], BOXES, SIZE)[:, 0] > 0.5
    masks = instance_masks(logits, BOXES, SIZE)
    assert masks.dtype == torch.bool
    assert torch.equal(masks, expected)
    assert masks[:4].flatten(1).any(1).all()
    assert not masks[5].any()


@pytest.mark.parametrize("file", ["mask_fcn_fpn", "mask_hourglass_fused"])
def test_pasting_equals_the_originals(reference_dir, file):
    golden = load_file(reference_dir / f"{file}.safetensors")
    expected = golden["det.mask_pasted"][:, 0].bool()
    logits = golden["det.mask_prob"][:, 0].double().logit()
    assert torch.equal(instance_masks(logits, golden["det.boxes"], tuple(expected.shape[1:])), expected)


def test_threshold_is_strict():
    logits = torch.zeros(1, 28, 28)
    inside = torch.tensor([[20.0, 20.0, 39.0, 39.0]])
    assert not instance_masks(logits, inside, SIZE, threshold=0.5).any()
    assert instance_masks(logits, inside, SIZE, threshold=0.499)[0, 22:38, 22:38].all()


def test_run_lengths_equal_pycocotools():
    coco_mask = pytest.importorskip("pycocotools.mask")
    logits = random_logits()
    masks = instance_masks(logits, BOXES, SIZE)
    rles = instance_masks(logits, BOXES, SIZE, return_rle=True)
    for mask, rle in zip(masks.numpy(), rles, strict=True):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": list(SIZE), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (9, 1), (7, 5)])
def test_run_lengths_of_full_empty_and_random_regions(height, width):
    coco_mask = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    full = np.ones((height, width), dtype=bool)
    for region in (full, ~full, *(generator.random((10, height, width)) < 0.5)):
        # Alone it fills the image, so that runs go on from one column to the next.
        for top, left, size in ((0, 0, (height, width)), (2, 3, (height + 5, width + 3)), (0, 1, (height, width + 2))):
            mask = np.zeros(size, dtype=np.uint8, order="F")
            mask[top : top + height, left : left + width] = region
            expected = coco_mask.encode(mask)["counts"].decode()
            assert encode_region(region, top, left, size) == {"size": list(size), "counts": expected}


def test_long_runs_survive():
    coco_mask = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((3000, 4000), dtype=np.uint8, order="F")
    mask[7:2990, 3900] = 1
    mask[1, 20] = 1
    rle = encode_region(mask.astype(bool), 0, 0, mask.shape)
    assert rle["counts"] == coco_mask.encode(mask)["counts"].decode()


def test_union_is_where_any_mask_is():
    logits = random_logits()
    assert torch.equal(union_mask(logits, BOXES, SIZE), instance_masks(logits, BOXES, SIZE).any(0))
    assert union_mask(logits[:0], BOXES[:0], SIZE).shape == SIZE
    assert not union_mask(logits[:0], BOXES[:0], SIZE).any()


def test_images_without_boxes():
    assert instance_masks(random_logits(0), BOXES[:0], SIZE).shape == (0, *SIZE)
    assert instance_masks(random_logits(0), BOXES[:0], SIZE, return_rle=True) == []


def test_boxes_go_back_to_the_resized_image():
    image_sizes = torch.tensor([[50, 100], [40, 20]])
    boxes = [torch.tensor([[10.0, 20.0, 30.0, 40.0]]), torch.zeros(0, 4)]
    scaled, sizes = boxes_for_masks(boxes, image_sizes, [(100, 400), (40, 20)])
    assert scaled[0].tolist() == [[2.5, 10.0, 7.5, 20.0]]
    assert scaled[1].shape == (0, 4)
    assert sizes == [(100, 400), (40, 20)]
    assert boxes_for_masks(boxes, image_sizes, None)[1] == [(50, 100), (40, 20)]


@pytest.mark.parametrize(
    "logits, boxes, size, threshold, message",
    [
        (random_logits(2), BOXES[:1], SIZE, 0.5, r"shape \(1, side, side\)"),
        (random_logits(1)[:, :5], BOXES[:1], SIZE, 0.5, "square"),
        (random_logits(1), BOXES[:1], (0, 5), 0.5, "height, width"),
        (random_logits(1), BOXES[:1], SIZE, 1.5, "between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(logits, boxes, size, threshold, message):
    with pytest.raises(ValueError, match=message):
        list(paste_regions(logits, boxes, size, threshold))


def peak_memory_mib() -> float:
    """The most memory that this process held since the peak was set back."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def test_run_lengths_need_the_memory_of_one_mask():
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_memory_mib()
    except OSError:
        pytest.skip("the peak of memory can be set back on Linux only")
    logits = torch.nn.functional.interpolate(torch.randn(24, 1, 4, 4), 28)[:, 0] * 4
    boxes = torch.tensor([[0.0, 0.0, 2999.0, 1999.0]]).repeat(24, 1)
    assert len(instance_masks(logits, boxes, (2000, 3000), return_rle=True)) == 24
    # 24 masks are 137 MiB as bool and 549 as float; one with all that is made of it about 50.
    assert peak_memory_mib() - before < 110
