"""From scores to boxes, against plain loops."""

import pytest
import torch

from tests.no_waits import NoWaits, WaitError
from transformers_glipv2 import post_processing
from transformers_glipv2.boxes import normalize_boxes, to_device
from transformers_glipv2.post_processing import (
    Limits,
    batch_detections,
    cut_at,
    label_scores,
    merge_detections,
    scale_boxes,
    select_detections,
)


def plain_selection(scores, centerness, boxes, level_sizes, threshold, nms_threshold, max_detections, pre_nms_top_n):
    """The original's steps, one pair of location and label at a time, in float64."""
    centerness = centerness.double().sigmoid()
    pairs, first = [], 0
    for count in level_sizes:
        level = [
            (float(scores[anchor, label]) * float(centerness[anchor]), label, boxes[anchor].tolist())
            for anchor in range(first, first + count)
            for label in range(scores.shape[1])
            if scores[anchor, label] > threshold
        ]
        pairs += sorted(level, key=lambda pair: -pair[0])[:pre_nms_top_n]
        first += count
    kept = []
    for rank, label, box in sorted(pairs, key=lambda pair: -pair[0]):
        if all(other != label or overlap(box, own) <= nms_threshold for _, other, own in kept):
            kept.append((rank, label, box))
    if len(kept) > max_detections:
        kept = [pair for pair in kept if pair[0] >= kept[max_detections - 1][0]]
    return [rank**0.5 for rank, _, _ in kept], [label for _, label, _ in kept], [box for _, _, box in kept]


def overlap(a, b):
    width, height = (min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]) + 1 for axis in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def random_head(seed: int, anchors: int = 60, labels: int = 3):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(anchors, 2, generator=generator) * 40
    boxes = torch.cat((corners, corners + torch.rand(anchors, 2, generator=generator) * 30), dim=1)
    scores = torch.rand(anchors, labels, generator=generator) ** 2
    return scores, torch.randn(anchors, generator=generator), boxes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [(0.05, 0.6, 100, 1000), (0.0, 0.3, 7, 10), (0.4, 0.9, 1, 5)])
def test_selection(seed, settings):
    scores, centerness, boxes = random_head(seed)
    levels = [40, 15, 4, 1]
    threshold, *others = settings
    expected = plain_selection(scores, centerness, boxes, levels, threshold, *others)
    found = select_detections(scores, centerness, boxes, levels, 0.0, *others, pre_nms_threshold=threshold)
    assert found[1].tolist() == expected[1] and len(expected[1]) > 0
    torch.testing.assert_close(found[0], torch.tensor(expected[0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2], torch.tensor(expected[2]), atol=1e-6, rtol=0)


def test_nothing_above_the_threshold():
    scores, centerness, boxes = random_head(0)
    found = select_detections(scores, centerness, boxes, [60], threshold=1.0)
    assert [tuple(tensor.shape) for tensor in found] == [(0,), (0,), (0, 4)]


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_on_the_score_that_is_returned(seed):
    """Any threshold gives the boxes of threshold 0 from that score on."""
    scores, centerness, boxes = random_head(seed)
    whole = select_detections(scores, centerness, boxes, [60], 0.0)
    for threshold in (0.4, 0.6, float(whole[0][4])):
        found = select_detections(scores, centerness, boxes, [60], threshold)
        count = int((whole[0] >= threshold).sum())
        assert 0 < count < len(whole[0])
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other[:count], atol=0, rtol=0)


def test_suppression_across_labels():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9.5], [40, 0, 49, 9]])
    scores = torch.tensor([[0.9, 0.0], [0.0, 0.8], [0.0, 0.7]])
    plain = select_detections(scores, torch.zeros(3), boxes, [3])
    agnostic = select_detections(scores, torch.zeros(3), boxes, [3], agnostic_nms=True)
    assert plain[1].tolist() == [0, 1, 1]
    assert agnostic[1].tolist() == [0, 1]
    assert agnostic[2][:, 0].tolist() == [0, 40]


def test_no_labels_no_boxes():
    _, centerness, boxes = random_head(0)
    found = select_detections(torch.zeros(60, 0), centerness, boxes, [60])
    assert [tuple(tensor.shape) for tensor in found] == [(0,), (0,), (0, 4)]


def test_ties_at_the_cut_stay():
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9]])
    scores = torch.tensor([[0.9], [0.5], [0.5], [0.4]])
    found = select_detections(scores, torch.zeros(4), boxes, [4], max_detections=2)
    assert found[2][:, 0].tolist() == [0, 20, 40]
    assert cut_at(torch.tensor([3.0, 1.0, 2.0]), 2).tolist() == [True, False, True]
    assert cut_at(torch.tensor([]), 2).tolist() == []


def test_levels_must_add_up():
    scores, centerness, boxes = random_head(0)
    with pytest.raises(ValueError, match=r"\[40, 15\] adds up to 55, but there are 60 anchors"):
        select_detections(scores, centerness, boxes, [40, 15])


def test_what_overflowed_is_refused():
    """Not an empty list of boxes, as comparisons with NaN would give."""
    centerness = torch.tensor([0.0, float("nan")])
    with pytest.raises(ValueError, match=r"`centerness` holds NaN or infinity.*dtype=torch\.bfloat16"):
        select_detections(torch.rand(2, 3), centerness, torch.rand(2, 4), [2])
    with pytest.raises(ValueError, match="`logits` holds NaN"):
        select_detections(torch.full((2, 3), float("nan")), torch.zeros(2), torch.rand(2, 4), [2])


def test_order_of_labels_and_words_says_nothing():
    """Labels and their columns in another order give the same boxes under other indices."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 7, generator=generator) - 1
    named = torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    _, centerness, boxes = random_head(0)
    columns, rows = torch.tensor([0, 5, 6, 4, 3, 1, 2]), torch.tensor([2, 1, 0])
    one = select_detections(label_scores(logits, named), centerness, boxes, [60])
    other = select_detections(label_scores(logits[:, columns], named[rows][:, columns]), centerness, boxes, [60])
    assert one[1].tolist() == rows[other[1]].tolist()
    torch.testing.assert_close(one[0], other[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(one[2], other[2], atol=0, rtol=0)


def test_label_scores():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    named = torch.tensor([[True, False, True, False], [False, True, False, False]])
    expected = torch.stack([logits[:, [0, 2]].sigmoid().mean(1), logits[:, 1].sigmoid()], dim=1)
    torch.testing.assert_close(label_scores(logits, named), expected)
    torch.testing.assert_close(logits, before, atol=0, rtol=0)
    half = label_scores(logits.bfloat16(), named)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=1e-2, rtol=0)


def test_scale_boxes():
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    assert scale_boxes(boxes, torch.tensor([100, 200]), (50, 400)).tolist() == [[20, 10, 60, 20]]


# Several images ------------------------------------------------------------------------------------------------------


def random_outputs() -> dict[str, torch.Tensor]:
    """Of a detector: three images, 60 locations, 9 tokens."""
    heads = [random_head(seed) for seed in range(3)]
    sizes = torch.tensor([[80, 80], [80, 70], [60, 80]])
    boxes = torch.stack([boxes for _, _, boxes in heads])
    return {
        "logits": torch.randn(3, 60, 9, generator=torch.Generator().manual_seed(0)),
        "centerness": torch.stack([centerness for _, centerness, _ in heads]),
        "pred_boxes": normalize_boxes(boxes, sizes),
        "level_shapes": torch.tensor([[5, 8], [4, 5]]),
        "image_sizes": sizes,
    }


MAPS = [torch.eye(9, dtype=torch.bool)[1:4], torch.eye(9, dtype=torch.bool)[2:8], torch.eye(9, dtype=torch.bool)[5:6]]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("at_once", [1, 40_000])
def test_images_are_found_together_as_alone(monkeypatch, at_once, agnostic):
    """Images of different labels, all suppressed at once or a few at a time."""
    monkeypatch.setattr(post_processing, "CANDIDATES_AT_ONCE", at_once)
    outputs, limits = random_outputs(), Limits(pre_nms_top_n=50, max_detections=20, agnostic_nms=agnostic)
    targets = [(160, 160), (80, 70), (30, 40)]
    together = batch_detections(outputs, MAPS, targets, limits)
    assert [len(result["scores"]) > 0 for result in together] == [True] * 3
    for image, (named, result) in enumerate(zip(MAPS, together, strict=True)):
        own = {name: value if name == "level_shapes" else value[image : image + 1] for name, value in outputs.items()}
        (alone,) = batch_detections(own, [named], [targets[image]], limits)
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(result[name], alone[name], atol=0, rtol=0)


def test_each_label_has_a_ranking_of_its_own():
    outputs, limits = random_outputs(), Limits(max_detections=3)
    found = batch_detections(outputs, MAPS, None, limits, each_label=True)
    assert len(found) == 10
    row = 0
    for image, named in enumerate(MAPS):
        own = {name: value if name == "level_shapes" else value[image : image + 1] for name, value in outputs.items()}
        for label in named:
            (alone,) = batch_detections(own, [label[None]], None, limits)
            torch.testing.assert_close(found[row], alone, atol=0, rtol=0)
            row += 1


@pytest.mark.parametrize("each_label", [False, True])
def test_only_named_places_wait(each_label):
    """Suppression and one copy of what stays; reads of what is on the CPU already stand beside them."""
    meant = [post_processing.suppressed, post_processing.fetch]
    on_cpu = [to_device, post_processing.used_tokens, post_processing.level_sizes_of, post_processing._read]
    on_cpu += [post_processing._numbers, scale_boxes]
    outputs, arguments = random_outputs(), (MAPS, [(160, 160), (80, 70), (30, 40)], Limits(), each_label)
    with NoWaits([*meant, *on_cpu]):
        batch_detections(outputs, *arguments)
    with pytest.raises(WaitError, match="values are read"), NoWaits(on_cpu):
        batch_detections(outputs, *arguments)


# Several prompts -----------------------------------------------------------------------------------------------------


def result(scores, labels, names):
    boxes = torch.tensor(scores)[:, None].expand(-1, 4)
    return {
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.long),
        "text_labels": [names[label] for label in labels],
        "boxes": boxes,
        "masks": boxes[:, :, None] > 0.5,
    }


def test_merged_results():
    first = result([0.9, 0.3], [1, 0], ["a", "b"])
    second = result([0.7, 0.3, 0.1], [0, 0, 1], ["c", "d"])
    merged = merge_detections([first, second], [[0, 1], [2, 3]], max_detections=3)
    assert merged["labels"].tolist() == [1, 2, 0, 2], "equal scores at the cut all stay"
    assert merged["text_labels"] == ["b", "c", "a", "c"]
    assert merged["scores"].tolist() == pytest.approx([0.9, 0.7, 0.3, 0.3])
    torch.testing.assert_close(merged["boxes"][:, 0], merged["scores"])
    assert merged["masks"].shape == (4, 4, 1)
    assert merge_detections([first], [[5, 6]])["labels"].tolist() == [6, 5]


def test_merging_prompts_equals_one_prompt():
    """Suppression is within a label, so prompts that score the same give what one prompt gives."""
    scores, centerness, boxes = random_head(3, labels=5)
    whole = select_detections(scores, centerness, boxes, [40, 20], max_detections=20)
    parts = []
    for labels in ([0, 1, 2], [3, 4]):
        found = select_detections(scores[:, labels], centerness, boxes, [40, 20], max_detections=20)
        parts.append(dict(zip(("scores", "labels", "boxes"), found, strict=True)))
    merged = merge_detections(parts, [[0, 1, 2], [3, 4]], max_detections=20)
    for tensor, name in zip(whole, ("scores", "labels", "boxes"), strict=True):
        torch.testing.assert_close(merged[name], tensor, atol=0, rtol=0)


def test_merging_with_suppression_across_labels():
    first, second = result([0.9, 0.3], [1, 0], ["a", "b"]), result([0.8], [0], ["c", "d"])
    for one in (first, second):
        one["boxes"] = torch.tensor([[0.0, 0, 9, 9], [40, 0, 49, 9]])[: len(one["scores"])]
    merged = merge_detections([first, second], [[0, 1], [2, 3]], agnostic_nms_threshold=0.6)
    assert merged["labels"].tolist() == [1, 0]
    assert merged["text_labels"] == ["b", "a"]
    assert len(merge_detections([first, second], [[0, 1], [2, 3]], None)["scores"]) == 3


def test_merging_nothing():
    empty = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    assert merge_detections([empty, empty], [[0], [1]])["boxes"].shape == (0, 4)
    with pytest.raises(ValueError, match="Got 2 results and 1 lists of indices"):
        merge_detections([empty, empty], [[0]])
    with pytest.raises(ValueError, match="pass at least one result"):
        merge_detections([], [])
