"""The levels of a feature pyramid: shapes, padding masks, and how they are flattened, split, cropped and joined."""

import torch
import torch.nn.functional as F

FeatureMaps = tuple[torch.Tensor, ...]


def map_shapes(feature_maps: FeatureMaps) -> list[tuple[int, int]]:
    """Height and width of each map."""
    return [(feature_map.shape[-2], feature_map.shape[-1]) for feature_map in feature_maps]


def flatten_levels(feature_maps: FeatureMaps) -> torch.Tensor:
    """Maps `(batch, channels, H_l, W_l)` to one sequence `(batch, locations, channels)`, P3 first, row-major."""
    return torch.cat([feature_map.flatten(2).transpose(1, 2) for feature_map in feature_maps], dim=1)


def split_levels(sequence: torch.Tensor, level_shapes: list[tuple[int, int]]) -> FeatureMaps:
    """The inverse of `flatten_levels`: `(batch, locations, channels)` to maps `(batch, channels, H_l, W_l)`."""
    levels = sequence.split([height * width for height, width in level_shapes], dim=1)
    # Not `unflatten`, which ONNX graphs would keep the sizes of.
    return tuple(
        level.reshape(level.shape[0], *shape, level.shape[-1]).permute(0, 3, 1, 2)
        for level, shape in zip(levels, level_shapes, strict=True)
    )


def location_mask(
    image_sizes: torch.Tensor, level_shapes: list[tuple[int, int]], strides: tuple[int, ...]
) -> torch.Tensor:
    """
    Which locations are in the image rather than in its padding.

    Args:
        image_sizes: `(batch, 2)`, height and width in pixels of each un-padded image.
        level_shapes: height and width of each level's map.
        strides: pixels between locations of each level.

    Returns:
        boolean `(batch, locations)`, P3 first, row-major.
    """
    masks = []
    for (height, width), stride in zip(level_shapes, strides, strict=True):
        rows = torch.arange(height, device=image_sizes.device) * stride < image_sizes[:, :1]
        columns = torch.arange(width, device=image_sizes.device) * stride < image_sizes[:, 1:]
        masks.append((rows[:, :, None] & columns[:, None, :]).flatten(1))
    return torch.cat(masks, dim=1)


def own_map_shapes(
    image_sizes: list[tuple[int, int]], level_shapes: list[tuple[int, int]], strides: tuple[int, ...]
) -> list[list[tuple[int, int]]]:
    """
    The part of each map that an image fills, as `location_mask` marks it.

    Args:
        image_sizes: height and width in pixels of each un-padded image.
        level_shapes: height and width of each level's map.
        strides: pixels between locations of each level.

    Returns:
        For each image height and width on each level.
    """
    return [
        [
            (min(-(-rows // stride), height), min(-(-columns // stride), width))
            for (height, width), stride in zip(level_shapes, strides, strict=True)
        ]
        for rows, columns in image_sizes
    ]


def has_padding(own_shapes: list[list[tuple[int, int]]] | None, feature_maps: FeatureMaps) -> bool:
    """Whether some image does not fill the maps; `None` is of images whose padding takes part."""
    return own_shapes is not None and any(own != map_shapes(feature_maps) for own in own_shapes)


def crop_maps(feature_maps: FeatureMaps, image: int, shapes: list[tuple[int, int]]) -> FeatureMaps:
    """One image's maps, as a batch of 1, without their padding."""
    return tuple(
        feature_map[image : image + 1, :, :height, :width]
        for feature_map, (height, width) in zip(feature_maps, shapes, strict=True)
    )


def join_maps(images: list[FeatureMaps], level_shapes: list[tuple[int, int]]) -> FeatureMaps:
    """Maps of several images to one batch of `level_shapes`, zero to the right of and below each image."""
    return tuple(
        torch.cat([F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in level])
        for level, (height, width) in zip(zip(*images, strict=True), level_shapes, strict=True)
    )


def join_attentions(
    images: list[tuple[torch.Tensor, torch.Tensor]],
    shapes: list[list[tuple[int, int]]],
    level_shapes: list[tuple[int, int]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `join_maps`, for the two attention maps of a fusion; `shapes` is each image's part of `level_shapes`."""
    of_locations, of_tokens = zip(*images, strict=True)
    return (
        torch.cat([pad_locations(one, own, level_shapes, 2) for one, own in zip(of_locations, shapes, strict=True)]),
        torch.cat([pad_locations(one, own, level_shapes, 3) for one, own in zip(of_tokens, shapes, strict=True)]),
    )


def pad_locations(
    values: torch.Tensor, own_shapes: list[tuple[int, int]], level_shapes: list[tuple[int, int]], dim: int
) -> torch.Tensor:
    """Values of the locations of an image's own maps, along `dim`, as those of `level_shapes`; 0 in the padding."""
    values = values.movedim(dim, -1)
    levels = values.split([height * width for height, width in own_shapes], dim=-1)
    padded = [
        F.pad(level.unflatten(-1, own), (0, shape[1] - own[1], 0, shape[0] - own[0])).flatten(-2)
        for level, own, shape in zip(levels, own_shapes, level_shapes, strict=True)
    ]
    return torch.cat(padded, dim=-1).movedim(-1, dim)
