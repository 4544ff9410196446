"""Images become what the original code read, whatever form they come in."""

import json

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor
from transformers.image_utils import SizeDict

from tests.tiny_detector import natural_image
from transformers_glipv2.image_processing_glipv2 import (
    GLIPv2ImageProcessor,
    padded_size,
    resized_size,
    set_shortest_edge,
)
from transformers_glipv2.image_processing_pil_glipv2 import GLIPv2ImageProcessorPil

BACKENDS = [GLIPv2ImageProcessor, GLIPv2ImageProcessorPil]
# Pixels as they are, so that tests can compare them.
RAW = {"do_resize": False, "do_normalize": False, "do_bgr": False, "do_pad": False}


def pixels_of(processor, image, **kwargs) -> torch.Tensor:
    return processor(image, return_tensors="pt", **{**RAW, **kwargs})["pixel_values"][0]


# Parity --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(reference_dir) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / "forward.safetensors")


def test_resize_rule_of_the_original(reference_dir):
    rows = json.loads((reference_dir / "text" / "text.json").read_text())["resize_rule_800_1333"]
    size = SizeDict(shortest_edge=800, longest_edge=1333)
    for row in rows:
        assert list(resized_size(row["h"], row["w"], size)) == row["out_hw"], row


def test_pil_backend_equals_the_original(golden):
    images = [PIL.Image.fromarray(golden[f"input.raw_rgb.{index}"].numpy()) for index in (0, 1)]
    processor = GLIPv2ImageProcessorPil(size={"shortest_edge": 256, "longest_edge": 384})
    inputs = processor(images, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], golden["input.pixel_values"], atol=1e-6, rtol=0)
    expected = torch.zeros(2, 256, 352, dtype=torch.long)
    expected[0, :, :341] = 1
    expected[1, :, :256] = 1
    assert torch.equal(inputs["pixel_mask"], expected)
    resized = processor(images[0], do_bgr=False, do_normalize=False, do_pad=False)["pixel_values"][0]
    assert np.array_equal(resized.transpose(1, 2, 0), golden["input.resized_rgb.0"].numpy())


def test_torchvision_backend_is_near_the_original(golden):
    """The images are noise, the worst case for rounding: one value of 10^5 is two grey levels off."""
    images = [golden[f"input.raw_rgb.{index}"] for index in (0, 1)]
    processor = GLIPv2ImageProcessor(size={"shortest_edge": 256, "longest_edge": 384})
    inputs = processor(images, return_tensors="pt")
    std = torch.tensor(processor.image_std)[:, None, None]
    levels = (inputs["pixel_values"] - golden["input.pixel_values"]).abs() * std
    assert (levels > 0.01).float().mean() < 0.02
    assert (levels > 1.01).float().mean() < 1e-5
    assert levels.max() < 2.01


def test_demo_path_of_the_original(reference_dir):
    demo = load_file(reference_dir / "text" / "demo_preprocess.safetensors")
    rgb = demo["image_bgr_uint8"].numpy()[..., ::-1]  # a view with a negative stride
    inputs = GLIPv2ImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160})(rgb, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], demo["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [{"shortest_edge": 61, "longest_edge": 80}, {"height": 50, "width": 200}])
def test_backends_are_a_grey_level_apart(size):
    images = [natural_image(), natural_image(40, 300), natural_image(90, 130)]
    torchvision, pil = (backend(size=size)(images, do_normalize=False, return_tensors="pt") for backend in BACKENDS)
    assert torch.equal(torchvision["pixel_mask"], pil["pixel_mask"])
    difference = (torchvision["pixel_values"].float() - pil["pixel_values"].float()).abs()
    assert difference.max() <= 1
    assert difference.mean() < 0.02


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [((1, 1), (800, 800)), ((20, 2000), (13, 1300)), ((2000, 20), (1300, 13)), ((1, 3000), (1, 1333))],
)
def test_extreme_sizes(image, expected):
    assert resized_size(*image, SizeDict(shortest_edge=800, longest_edge=1333)) == expected


def test_shortest_edge_alone_never_shrinks_the_long_side():
    assert resized_size(20, 200, SizeDict(shortest_edge=40)) == (40, 400)


def test_sizes_round_up_to_the_divisor():
    assert padded_size([(33, 64), (10, 65)], 32, None) == (64, 96)
    assert padded_size([(33, 64)], None, None) == (33, 64)
    assert padded_size([(33, 64)], 32, SizeDict(height=40, width=70)) == (40, 70)
    with pytest.raises(ValueError, match="30x70 is smaller than a resized image"):
        padded_size([(33, 64)], 32, SizeDict(height=30, width=70))


@pytest.mark.parametrize("backend", BACKENDS)
def test_size_of_one_call(backend):
    processor = backend(size={"shortest_edge": 64, "longest_edge": 100}, size_divisor=8)
    assert processor(natural_image(), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 96)
    inputs = processor(natural_image(), size={"shortest_edge": 32, "longest_edge": 40}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 40)
    assert processor(natural_image(), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 96)
    with pytest.raises(ValueError, match="shortest_edge"):
        processor(natural_image(), size={"longest_edge": 40})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (20, 2000), (2000, 20)])
def test_extreme_images(backend, size):
    processor = backend(size={"shortest_edge": 80, "longest_edge": 133})
    inputs = processor(PIL.Image.new("RGB", size, (10, 20, 30)), return_tensors="pt")
    assert inputs["pixel_mask"].sum() > 0
    values = inputs["pixel_values"][0][:, inputs["pixel_mask"][0].bool()]
    expected = (torch.tensor([30, 20, 10]) - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    torch.testing.assert_close(values, expected[:, None].expand_as(values))
    assert (inputs["pixel_values"][0][:, inputs["pixel_mask"][0] == 0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_alone_and_in_a_batch(backend):
    processor = backend(size={"shortest_edge": 40, "longest_edge": 66})
    images = [natural_image(), natural_image(30, 30), natural_image(200, 50)]
    batch = processor(images, return_tensors="pt")
    for index, image in enumerate(images):
        alone = processor(image, return_tensors="pt")
        rows, columns = (int(alone["pixel_mask"][0].any(axis).sum()) for axis in (1, 0))
        assert torch.equal(
            alone["pixel_values"][0, :, :rows, :columns], batch["pixel_values"][index, :, :rows, :columns]
        )
        assert batch["pixel_mask"][index].sum() == rows * columns
        assert batch["pixel_mask"][index, :rows, :columns].all()


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_imagenet_order(backend):
    """RGB in 0..1, as a timm backbone wants it."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = backend(do_bgr=False, rescale_factor=1 / 255, image_mean=mean, image_std=std)
    values = pixels_of(processor, PIL.Image.new("RGB", (4, 4), (255, 51, 0)), do_normalize=True)
    expected = (torch.tensor([1.0, 0.2, 0.0]) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(values[:, 0, 0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bgr_swaps_channels(backend):
    values = pixels_of(backend(), PIL.Image.new("RGB", (4, 4), (1, 2, 3)), do_bgr=True)
    assert values[:, 0, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_and_loaded(backend, tmp_path):
    processor = backend(size={"shortest_edge": 48, "longest_edge": 64}, do_bgr=False, size_divisor=16)
    processor.save_pretrained(tmp_path)
    name = "pil" if backend is GLIPv2ImageProcessorPil else "torchvision"
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=name)
    assert type(loaded) is backend
    assert loaded.to_dict() == processor.to_dict()
    image = natural_image()
    assert torch.equal(
        loaded(image, return_tensors="pt")["pixel_values"], processor(image, return_tensors="pt")["pixel_values"]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_numpy_tensors(backend):
    inputs = backend(size={"shortest_edge": 32})(natural_image(), return_tensors="np")
    assert isinstance(inputs["pixel_values"], np.ndarray)
    assert inputs["pixel_values"].shape == (1, 3, 32, 64)
    assert inputs["pixel_values"].dtype == np.float32


# Forms of images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "YCbCr", "HSV"])
def test_pil_modes(backend, mode):
    image = natural_image(12, 9).convert(mode)
    expected = np.array(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(pixels_of(backend(), image).numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_transparency_is_dropped(backend):
    image = PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert pixels_of(backend(), image)[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels_of(backend(), np.array(image))[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("backend", BACKENDS)
def test_16_bit_images(backend, tmp_path):
    """PIL's own conversion to RGB would clip all but the darkest to white."""
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = PIL.Image.fromarray(grey * 257)
    assert image.mode == "I;16"
    image.save(tmp_path / "grey.png")
    expected = torch.from_numpy(grey.astype(np.uint8)).expand(3, -1, -1)
    for form in (image, grey * 257, PIL.Image.fromarray((grey * 257).astype(np.int32)), tmp_path / "grey.png"):
        assert torch.equal(pixels_of(backend(), form).to(torch.uint8), expected)
    assert torch.equal(pixels_of(backend(), PIL.Image.fromarray(grey.astype(np.int32))).to(torch.uint8), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_and_tensors(backend):
    image = natural_image(12, 9)
    array = np.array(image)
    expected = pixels_of(backend(), image)
    tensor = torch.from_numpy(array)
    read_only = array.copy()
    read_only.setflags(write=False)
    forms = [array, array.transpose(2, 0, 1), tensor, tensor.permute(2, 0, 1), array[None], read_only]
    forms += [array.astype(np.float32), tensor.double(), array[::-1][::-1]]
    for form in forms:
        assert torch.equal(pixels_of(backend(), form).float(), expected.float())
    scaled = pixels_of(backend(), array / 255)
    torch.testing.assert_close(scaled, expected.float(), atol=1e-4, rtol=0)
    grey = pixels_of(backend(), array[..., 0])
    assert torch.equal(grey, expected[:1].expand(3, -1, -1))
    assert torch.equal(pixels_of(backend(), array[..., :1]), grey)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ambiguous_shapes(backend):
    """Arrays are taken as (height, width, channels), tensors as (channels, height, width), unless the caller says."""
    array = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert torch.equal(pixels_of(backend(), array), torch.from_numpy(array).permute(2, 0, 1))
    assert torch.equal(pixels_of(backend(), torch.from_numpy(array)), torch.from_numpy(array))
    given = pixels_of(backend(), array, input_data_format="channels_first")
    assert torch.equal(given, torch.from_numpy(array))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float_images_resize_without_rounding(backend):
    array = np.array(natural_image())
    processor = backend(size={"shortest_edge": 61})
    whole, floating = (
        processor(form, do_normalize=False, return_tensors="pt")["pixel_values"].float()
        for form in (array, array.astype(np.float32))
    )
    assert 0 < (whole - floating).abs().max() <= 1.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_already_normalised_images(backend):
    values = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pixels_of(backend(), values, do_rescale=False), values)
    with pytest.raises(ValueError, match="do_rescale=False"):
        pixels_of(backend(), values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_are_turned_upright_and_objects_taken_as_they_are_stored(backend, tmp_path):
    lying = natural_image(8, 24)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "turned.png", exif=exif)
    assert pixels_of(backend(), str(tmp_path / "turned.png")).shape == (3, 24, 8)
    assert pixels_of(backend(), tmp_path / "turned.png").shape == (3, 24, 8)
    with PIL.Image.open(tmp_path / "turned.png") as opened:
        assert pixels_of(backend(), opened).shape == (3, 8, 24)
        upright = PIL.ImageOps.exif_transpose(opened)
    assert torch.equal(pixels_of(backend(), upright), pixels_of(backend(), tmp_path / "turned.png"))


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (PIL.Image.new("RGB", (0, 5)), ValueError, r"images\[1\].*empty: 5x0"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"images\[1\].*empty"),
        (np.full((4, 4, 3), np.nan, np.float32), ValueError, r"images\[1\].*NaN"),
        (torch.full((3, 4, 4), float("inf")), ValueError, r"images\[1\].*infinite"),
        (np.zeros((4, 4, 3), np.int64), TypeError, r"images\[1\].*int64.*astype"),
        (np.zeros((4, 4, 3), bool), TypeError, r"images\[1\].*bool"),
        (np.zeros((4, 4, 3), complex), TypeError, r"images\[1\].*complex"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), TypeError, r"images\[1\].*int32"),
        (np.full((4, 4, 3), -1.0), ValueError, r"images\[1\].*-1 to -1"),
        (np.full((4, 4, 3), 256.0), ValueError, r"images\[1\].*256"),
        (np.zeros((5, 6, 7), np.uint8), ValueError, r"\(5, 6, 7\).*channels"),
        (np.zeros(4, np.uint8), ValueError, r"images\[1\].*2 or 3 dimensions"),
        (PIL.Image.fromarray(np.full((4, 4), 70000, np.int32)), ValueError, "70000"),
        (3, TypeError, "int"),
        (None, TypeError, "NoneType"),
    ],
)
def test_bad_images(backend, image, error, message):
    with pytest.raises(error, match=message):
        backend()([natural_image(4, 4), image])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images(backend):
    with pytest.raises(ValueError, match="empty"):
        backend()([])


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_files(backend, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image file.*absent\.jpg"):
        backend()(str(tmp_path / "absent.jpg"))
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        backend()(tmp_path / "absent.jpg")
    for name in ("whole.jpg", "whole.png"):
        natural_image().save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"cut_{name}.*truncated or broken"):
            backend()(tmp_path / f"cut_{name}")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png.*not an image that PIL can read"):
        backend()(tmp_path / "text.png")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"shortest_edge": -5}, r"`size\[\"shortest_edge\"\]` must be a whole number of pixels, at least 1; got -5"),
        ({"shortest_edge": 0}, "at least 1; got 0"),
        ({"shortest_edge": 40, "longest_edge": -1}, r"`size\[\"longest_edge\"\]` must be .*; got -1"),
        ({"height": 0, "width": 5}, r"`size\[\"height\"\]`"),
        ({"longest_edge": 40}, '`size` must have "shortest_edge"'),
        ({"max_height": 5, "max_width": 5}, '`size` must have "shortest_edge"'),
    ],
)
def test_bad_sizes(backend, size, message):
    """Where a processor is made and in a call."""
    with pytest.raises(ValueError, match=message):
        backend(size=size)
    with pytest.raises((ValueError, TypeError), match=message):
        backend()(natural_image(), size=size)
    with pytest.raises(ValueError, match=r"whole number of pixels, at least 1; got 40\.5"):
        backend(size={"shortest_edge": 40.5})  # in a call transformers' own check of types comes first
    for divisor in (0, -32):
        with pytest.raises(ValueError, match=f"`size_divisor` must be an integer of at least 1, got {divisor}"):
            backend(size_divisor=divisor)


@pytest.mark.parametrize("backend", BACKENDS)
def test_set_shortest_edge(backend, tmp_path):
    processor = backend(size={"shortest_edge": 80, "longest_edge": 133})
    set_shortest_edge(processor, 40)
    assert dict(processor.size)["shortest_edge"] == 40 and processor.size.longest_edge == 66
    assert processor(natural_image(), return_tensors="pt", size_divisor=1)["pixel_values"].shape[2:] == (40, 57)
    processor.save_pretrained(tmp_path)
    assert backend.from_pretrained(tmp_path).size == processor.size
    for wrong in (0, -4):
        with pytest.raises(ValueError, match=f"at least 1; got {wrong}"):
            set_shortest_edge(processor, wrong)
    with pytest.raises(ValueError, match="resizes to 30x40 pixels; it has no shortest edge"):
        set_shortest_edge(backend(size={"height": 30, "width": 40}), 20)
