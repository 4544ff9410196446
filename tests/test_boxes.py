"""Box arithmetic: round trips, suppression and images without boxes."""

import pytest
import torch

from transformers_glipv2 import boxes as boxes_module
from transformers_glipv2.boxes import (
    anchor_grid,
    assign_atss,
    batched_nms_inclusive,
    box_iou_inclusive,
    decode_boxes,
    denormalize_boxes,
    encode_boxes,
    normalize_boxes,
)


def random_boxes(count: int) -> torch.Tensor:
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * 50
    return torch.cat([corners, corners + 5 + corners.flip(1)], dim=1)


def test_coding_and_normalising_are_undone():
    boxes, anchors = random_boxes(20), random_boxes(20).flip(0)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, atol=1e-3, rtol=0)
    size = torch.tensor([120, 200])
    torch.testing.assert_close(denormalize_boxes(normalize_boxes(boxes, size), size), boxes, atol=1e-3, rtol=0)


def test_suppression_keeps_other_labels_and_equals_a_loop():
    boxes = random_boxes(40)
    scores = torch.rand(40, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 3
    overlaps = box_iou_inclusive(boxes, boxes)
    expected = []
    for index in scores.argsort(descending=True).tolist():
        if all(labels[index] != labels[kept] or overlaps[index, kept] <= 0.3 for kept in expected):
            expected.append(index)
    assert len(expected) < 40
    assert batched_nms_inclusive(boxes, scores, labels, 0.3).tolist() == expected


def test_assignment_takes_a_image_without_boxes():
    shapes = [(8, 8), (4, 4)]
    anchors = anchor_grid(shapes, (8, 16), (64, 128))
    counts = [64, 16]
    box, none = torch.tensor([[0.0, 0.0, 62.0, 62.0]]), torch.empty(0, 4)
    assert (assign_atss(anchors, counts, none, torch.empty(0, dtype=torch.long), 2)[0] == -1).all()
    matched, _ = assign_atss(anchors, counts, box, torch.tensor([1]), 2)
    assert (matched[0] == -1).all() and set(matched[1].unique().tolist()) == {-1, 0}


@pytest.mark.parametrize("at_once", [1 << 23, 200])
def test_images_are_assigned_together_as_alone(monkeypatch, at_once):
    monkeypatch.setattr(boxes_module, "DISTANCES_AT_ONCE", at_once)
    torch.manual_seed(0)
    anchors, counts = anchor_grid([(8, 8), (4, 4)], (8, 16), (64, 128)), [64, 16]
    image = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    corners = torch.rand(7, 2) * 10
    boxes = torch.cat([corners, corners + 30 + torch.rand(7, 2) * 20], dim=1)
    matched, candidates = assign_atss(anchors, counts, boxes, image, 3)
    assert candidates.shape == (7, 18)
    first = {0: 0, 1: 3, 2: 3}
    for index in range(3):
        own = boxes[image == index]
        alone = assign_atss(anchors, counts, own, torch.zeros(len(own), dtype=torch.long), 1)[0][0]
        assert matched[index].equal(torch.where(alone < 0, alone, alone + first[index]))
    assert (matched[2] >= 0).any() and (matched[1] == -1).all()


@pytest.mark.parametrize("seed", range(4))
def test_suppression_equals_a_plain_loop_on_many_labels(seed):
    """As many labels as LVIS has, boxes outside of the image, equal scores, and both ways that torchvision goes."""
    generator = torch.Generator().manual_seed(seed)
    count = 1500 if seed == 0 else 200
    corners = torch.rand(count, 2, generator=generator) * 900 - 60
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 300], dim=1)
    boxes[1::2] = boxes[::2] + torch.rand(count // 2, 4, generator=generator) * 20
    boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2])
    scores = (torch.rand(count, generator=generator) * 50).round() / 50
    labels = torch.randint(0, 1200, (count // 4,), generator=generator).repeat_interleave(4)
    expected, tops = [], {}
    for index in scores.argsort(descending=True, stable=True).tolist():
        kept = tops.setdefault(int(labels[index]), [])
        x1, y1, x2, y2 = boxes[index].double().tolist()
        for ox1, oy1, ox2, oy2 in kept:
            width, height = min(x2, ox2) - max(x1, ox1) + 1, min(y2, oy2) - max(y1, oy1) + 1
            overlap = max(width, 0) * max(height, 0)
            areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (ox2 - ox1 + 1) * (oy2 - oy1 + 1)
            if overlap / (areas - overlap) > 0.5:
                break
        else:
            kept.append((x1, y1, x2, y2))
            expected.append(index)
    assert len(expected) < count
    assert batched_nms_inclusive(boxes, scores, labels, 0.5).tolist() == expected
