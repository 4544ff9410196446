"""The whole model gives what the original gives at every stage, on converted weights."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from transformers_glipv2 import GLIPv2ForObjectDetection
from transformers_glipv2.conversion.convert_glip_checkpoint import config_from_state_dict, convert_state_dict

LEVELS = ("P3", "P4", "P5", "P6", "P7")
# Float32 noise against float64 is about 2e-5 on the logits of P3.
TOLERANCE = {"atol": 1e-4, "rtol": 0}
CASES = ("forward", "small", "glip_a")


def pixel_mask(pixel_values: torch.Tensor, image_sizes: list[list[int]]) -> torch.Tensor:
    mask = torch.zeros_like(pixel_values[:, 0], dtype=torch.long)
    for image, (height, width) in zip(mask, image_sizes, strict=True):
        image[:height, :width] = 1
    return mask


def keep_output(stages: dict, name: str):
    """A forward hook that stores what a module gives under `name`."""

    def hook(module, args, output):
        stages[name] = output

    return hook


def load_model(reference_dir, state_file: str, text_config: dict) -> GLIPv2ForObjectDetection:
    original = load_file(reference_dir / state_file)
    model = GLIPv2ForObjectDetection(config_from_state_dict(original, text_config=text_config)).eval()
    state = convert_state_dict(original)
    own = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
    model.load_state_dict(own)
    return model


@pytest.fixture(scope="module")
def results(reference_dir) -> dict[str, SimpleNamespace]:
    """Each case: the golden tensors, our output with every stage, and the maps of the backbone."""
    forward = json.loads((reference_dir / "forward.json").read_text())
    glip_a = json.loads((reference_dir / "glip_a.json").read_text())
    text_config = forward["spec"]["bert"]
    golden = {
        "forward": load_file(reference_dir / "forward.safetensors"),
        "small": load_file(reference_dir / "small.safetensors"),
        "glip_a": load_file(reference_dir / "glip_a_forward.safetensors"),
    }
    words = {name: golden["forward"][f"input.{name}"][:1] for name in ("input_ids", "attention_mask")}
    golden["small"].update({f"input.{name}": tensor for name, tensor in words.items()})
    sizes = {
        "forward": forward["image_sizes_hw"],
        "small": [forward["spec"]["small"][:2]],
        "glip_a": glip_a["image_sizes_hw"],
    }
    fused = load_model(reference_dir, "state.safetensors", text_config)
    models = {
        "forward": fused,
        "small": fused,
        "glip_a": load_model(reference_dir, "glip_a_state.safetensors", text_config),
    }

    results = {}
    for case in CASES:
        model, tensors, stages = models[case], golden[case], {}
        modules = {"backbone": model.model.backbone}
        for index, layer in enumerate(model.model.layers):
            parts = {"fusion": layer.fusion, "text_layer": layer.text_layer, "dyconv": layer.dyconv}
            modules.update({f"{name}.{index}": part for name, part in parts.items() if part is not None})
        hooks = [module.register_forward_hook(keep_output(stages, name)) for name, module in modules.items()]
        inputs = {
            "pixel_values": tensors["input.pixel_values"],
            "pixel_mask": pixel_mask(tensors["input.pixel_values"], sizes[case]),
            "input_ids": tensors["input.input_ids"],
            "attention_mask": tensors["input.attention_mask"],
        }
        with torch.no_grad():
            output = model(**inputs)
        for hook in hooks:
            hook.remove()
        results[case] = SimpleNamespace(model=model, golden=tensors, inputs=inputs, output=output, stages=stages)
    return results


@pytest.fixture(params=CASES)
def case(request, results) -> SimpleNamespace:
    return results[request.param]


@pytest.fixture(params=("forward", "small"))
def fused_case(request, results) -> SimpleNamespace:
    return results[request.param]


def assert_maps_close(maps, golden, prefix):
    for feature_map, level in zip(maps, LEVELS, strict=True):
        expected = golden[f"{prefix}.{level}"]
        torch.testing.assert_close(
            feature_map, expected, **TOLERANCE, msg=lambda text, level=level: f"{level}: {text}"
        )


def per_level(tensor: torch.Tensor, output) -> tuple[torch.Tensor, ...]:
    """`(batch, anchors, ...)` to one tensor a level."""
    return tensor.split(output.level_shapes.prod(1).tolist(), dim=1)


def test_backbone(case):
    maps = case.stages["backbone"].feature_maps
    for stage, feature_map in enumerate(maps, start=1):
        torch.testing.assert_close(feature_map, case.golden[f"swin.out.{stage}"], **TOLERANCE)


def test_feature_pyramid(case):
    assert_maps_close(case.output.feature_maps, case.golden, "fpn")


@pytest.mark.parametrize(("name", "stage"), [("forward", "bert.hidden"), ("glip_a", "bert.embedded")])
def test_text(results, name, stage):
    case = results[name]
    torch.testing.assert_close(case.output.text_features, case.golden[stage], **TOLERANCE)


@pytest.mark.parametrize("block", [0, 1])
def test_every_module_of_the_tower(fused_case, block):
    golden, stages = fused_case.golden, fused_case.stages
    vision, text, _ = stages[f"fusion.{block}"]
    counts = [golden[f"fpn.{level}"][0, 0].numel() for level in LEVELS]
    shapes = [golden[f"fpn.{level}"].shape[-2:] for level in LEVELS]
    maps = [level.mT.unflatten(2, shape) for level, shape in zip(vision.split(counts, 1), shapes, strict=True)]
    assert_maps_close(maps, golden, f"tower.{3 * block}.VLFuse.visual")
    torch.testing.assert_close(text, golden[f"tower.{3 * block}.VLFuse.lang.hidden"], **TOLERANCE)
    expected = golden[f"tower.{3 * block + 1}.BertEncoderLayer.lang.hidden"]
    torch.testing.assert_close(stages[f"text_layer.{block}"], expected, **TOLERANCE)
    assert_maps_close(stages[f"dyconv.{block}"], golden, f"tower.{3 * block + 2}.DyConv.visual")


@pytest.mark.parametrize("block", [0, 1])
def test_the_tower_without_fusion(results, block):
    case = results["glip_a"]
    assert_maps_close(case.stages[f"dyconv.{block}"], case.golden, f"tower.{block}.DyConv.visual")


def test_head(case):
    output, golden = case.output, case.golden
    for level, logits, centerness, deltas in zip(
        LEVELS,
        *(per_level(part, output) for part in (output.logits, output.centerness, output.box_deltas)),
        strict=True,
    ):
        torch.testing.assert_close(logits, golden[f"head.dot_product_logits.{level}"], **TOLERANCE)
        torch.testing.assert_close(centerness, golden[f"head.centerness.{level}"].flatten(1), **TOLERANCE)
        torch.testing.assert_close(deltas, golden[f"head.bbox_reg.{level}"].flatten(2).mT, **TOLERANCE)


def test_anchors(case):
    shapes = [tuple(shape) for shape in case.output.level_shapes.tolist()]
    anchors = case.model.anchors(shapes, torch.device("cpu"))
    expected = torch.cat([case.golden[f"anchors.{level}"] for level in LEVELS])
    assert torch.equal(anchors, expected.to(anchors.dtype))


def test_text_padded_to_the_longest_only(reference_dir, results):
    case, golden = results["forward"], load_file(reference_dir / "forward_padlongest.safetensors")
    tokens = golden["bert.hidden"].shape[1]
    words = {name: case.inputs[name][:, :tokens] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = case.model(**{**case.inputs, **words})
    torch.testing.assert_close(output.text_features, golden["bert.hidden"], **TOLERANCE)
    for level, logits, deltas in zip(
        LEVELS, per_level(output.logits, output), per_level(output.box_deltas, output), strict=True
    ):
        torch.testing.assert_close(logits, golden[f"head.dot_product_logits.{level}"], **TOLERANCE)
        torch.testing.assert_close(deltas, golden[f"head.bbox_reg.{level}"].flatten(2).mT, **TOLERANCE)
    # Padding to 256 as the original does moves nothing either.
    torch.testing.assert_close(output.logits, case.output.logits[:, :, :tokens], **TOLERANCE)


def test_eager_attention_and_gradients_give_the_same(results):
    case = results["forward"]
    case.model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = case.model(**case.inputs)
    case.model.set_attn_implementation("sdpa")
    differentiated = case.model(**case.inputs)
    for other in (eager, differentiated):
        for name in ("logits", "centerness", "box_deltas", "pred_boxes"):
            torch.testing.assert_close(other[name].detach(), case.output[name], **TOLERANCE)


def test_a_small_image_leaves_the_model_as_it_was(results):
    """Maps smaller than a window must not shrink the windows of later images."""
    forward, small = results["forward"], results["small"]
    with torch.no_grad():
        small.model(**small.inputs)
        again = forward.model(**forward.inputs)
    torch.testing.assert_close(again.logits, forward.output.logits)
