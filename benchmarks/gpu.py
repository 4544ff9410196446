"""
Measures what a GPU owner wants to know, in a few minutes: images a second, peak memory and training steps of
GLIPv2-tiny beside transformers' Grounding DINO tiny, eager and compiled, how far from the machine's limits that is,
and which form of the fusion and of the deformable convolution is faster.

    python benchmarks/gpu.py --output outputs/gpu                      # bfloat16 on a GPU, at most 150 s
    python benchmarks/gpu.py --device cpu --smoke --output outputs/gpu # small models, to see that it runs

All weights are random, which cost the same as trained ones; nothing is downloaded. From normalised pixels and tokens
to boxes on the CPU. What the time does not suffice for is left out, with a line that says so.
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_convert
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

from speed import TOKENS, VOCABULARIES, BytesMoved, clock, deform_flops, label_map, machine_name, process_memory, row
from transformers_glipv2 import Detector, GLIPv2Config, GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_device,
    add_output_folder,
    check_paths,
    positive_float,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_json, write_text
from transformers_glipv2.inference.batching import PreparedImage
from transformers_glipv2.inference.compiled_network import CompiledNetwork
from transformers_glipv2.inference.encoded_prompts import EncodedPrompt
from transformers_glipv2.layers import dyhead
from transformers_glipv2.layers.fusion import GLIPv2BiAttention
from transformers_glipv2.post_processing import batch_detections
from transformers_glipv2.training import parameter_groups

LABELS = 80
BATCHES = (1, 8, 32)
TRAINING_BATCH = 4
KINDS = ("ours", "ours compiled", "peer", "peer compiled")
# `[CLS]`, `[SEP]` and the full stop of BERT, which the peer's loss reads.
CLS, SEP, STOP = 101, 102, 1012
SMALL_SWIN = {
    "model_type": "swin",
    "embed_dim": 12,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 3, 4],
    "window_size": 4,
    "out_indices": [2, 3, 4],
}
SMALL_BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_device(parser, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=positive_int, default=torch.get_num_threads(), help="of the CPU (default: all)")
    add("--seconds", type=positive_float, default=150.0, help="for all measurements (default: 150)")
    add("--smoke", action="store_true", help="small models, images and batches, to see that everything runs")
    add_output_folder(parser, "folder for gpu.json and gpu.md")
    return parser.parse_args(arguments)


class Budget:
    """Seconds that are left for measurements, and what was left out for lack of them."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds
        self.skipped: list[str] = []

    def allows(self, what: str, seconds: float) -> bool:
        """Whether something that takes about so long may begin; says so where it may not."""
        left = self.end - time.monotonic()
        if left < seconds:
            self.skipped.append(f"{what}: about {seconds:.0f} s are needed, {max(left, 0):.0f} s were left")
            print("left out:", self.skipped[-1], flush=True)
        return left >= seconds


class Bench:
    """
    The two models and the measurements of them.

    Args:
        args: flags of the script.
    """

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(0)
        self.device = torch.device(args.device)
        self.on_gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.smoke = args.smoke
        self.size = (64, 96) if args.smoke else (800, 1088)
        self.batches = (1, 2) if args.smoke else BATCHES

    def build(self, kind: str) -> torch.nn.Module:
        """A model with random weights."""
        if kind == "peer":
            small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 20} if self.smoke else {}
            if self.smoke:
                small |= {
                    "backbone_config": {**SMALL_SWIN},
                    "text_config": {**SMALL_BERT},
                    "encoder_ffn_dim": 64,
                    "decoder_ffn_dim": 64,
                    "encoder_attention_heads": 4,
                    "decoder_attention_heads": 4,
                }
            return GroundingDinoForObjectDetection(GroundingDinoConfig(**small))
        if not self.smoke:
            return GLIPv2ForObjectDetection(GLIPv2Config.from_size("tiny"))
        small = {"d_model": 32, "num_fusion_layers": 1, "fusion_embed_dim": 64, "fusion_num_heads": 4}
        small |= {"backbone_config": {**SMALL_SWIN}, "text_config": {**SMALL_BERT}}
        return GLIPv2ForObjectDetection(GLIPv2Config(**small))

    def prompt(self, labels: int, tokens: int) -> torch.Tensor:
        """Random tokens `(1, tokens)` of labels with a full stop after each."""
        ids = torch.randint(2000, 20000, (1, tokens))
        owners = label_map(labels, tokens).float().argmax(0)
        ids[0, 1:-1][owners[1:-1] != owners[2:]] = STOP
        ids[0, 0], ids[0, -1], ids[0, -2] = CLS, SEP, STOP
        return ids.to(self.device)

    def pixels(self, batch: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(batch, 3, *self.size, device=self.device, dtype=dtype or self.dtype)

    # Calls -----------------------------------------------------------------------------------------------------------

    def caller(self, kind: str, labels: int, tokens: int) -> Callable[[torch.Tensor], Any]:
        """From pixels to boxes on the CPU, with `labels` labels in one prompt for all images."""
        family, _, compiled = kind.partition(" ")
        model: Any = self.build(family).eval().to(self.device, self.dtype)
        ids = self.prompt(labels, tokens)
        if family == "peer":
            options: dict[str, Any] = {"mode": "reduce-overhead"} if self.on_gpu else {"backend": "eager"}
            call = torch.compile(model, dynamic=False, **options) if compiled else model

            def find(pixels: torch.Tensor) -> Any:
                input_ids = ids.expand(len(pixels), -1)
                return peer_boxes(call(pixels, input_ids, attention_mask=torch.ones_like(input_ids)), self.size)

            return find
        network = CompiledNetwork(model, self.size, None if self.on_gpu else {"backend": "eager"})
        named = label_map(labels, tokens)

        def detect(pixels: torch.Tensor) -> Any:
            mask = torch.ones_like(ids)
            if compiled:
                pixel_mask = torch.ones(pixels[:, 0].shape, dtype=torch.long, device=self.device)
                features = network.get_image_features(pixels, pixel_mask)
                outputs = network.ground(features, input_ids=ids, attention_mask=mask)
            else:
                outputs = model(pixels, ids, attention_mask=mask)
            return batch_detections(outputs, [named] * len(pixels))

        return detect

    def vocabulary(self, kind: str) -> Callable[[], Any]:
        """1,203 labels, 86 a prompt, in one image."""
        labels = max(VOCABULARIES)
        tokens, count = VOCABULARIES[labels]
        count = 2 if self.smoke else count
        if kind == "peer":
            find = self.caller("peer", labels, tokens)
            pixels = self.pixels(1)
            return lambda: [find(pixels) for _ in range(count)]
        model: Any = self.build(kind).eval().to(self.device, self.dtype)
        prompts = [
            EncodedPrompt(
                self.prompt(labels, tokens)[0].tolist(),
                label_map(labels, tokens),
                list(range(index * labels, (index + 1) * labels)),
            )
            for index in range(count)
        ]
        # Without a processor: images and prompts are prepared already.
        detector = Detector(model, None, progress=False)
        pixels, mask = self.pixels(1), torch.ones(1, *self.size, dtype=torch.long)
        image = PreparedImage(pixels, mask, self.size, prompts)

        def detect() -> Any:
            detector.text_features.clear()  # texts are read each time, as the peer does
            features = detector.network.get_image_features(pixels, mask.to(self.device))
            return detector.find(features, [image], detector.options)

        return detect

    def training_step(self, kind: str) -> Callable[[], Any]:
        """Forward, loss, backward and the fused AdamW of a batch, in bfloat16 by autocast on a GPU."""
        batch, tokens = (2 if self.smoke else TRAINING_BATCH), TOKENS[LABELS]
        model: Any = self.build(kind).to(self.device).train()
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-5), fused=True)
        boxes = torch.cat([torch.rand(7, 2) * 0.4 + 0.3, torch.rand(7, 2) * 0.3 + 0.1], dim=1).to(self.device)
        classes, named = torch.randint(0, LABELS, (7,)), label_map(LABELS, tokens).float()
        ids = self.prompt(LABELS, tokens).expand(batch, -1)
        label = {"boxes": boxes, "positive_map": named[classes].to(self.device)}
        if kind == "peer":
            label = {"boxes": boxes, "class_labels": classes.to(self.device)}
        inputs = {
            "pixel_values": self.pixels(batch, torch.float32),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": [label] * batch,
        }

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    # Measurements ----------------------------------------------------------------------------------------------------

    def measure(self, work: Callable[[], Any], repeats: int = 10, seconds: float = 3.0) -> dict[str, float]:
        """
        The median time of a call, after three that warm up, and the peak memory of all in GB: of the GPU, or of the
        process, which remembers only its highest.
        """
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(1 if self.smoke else 3):
            work()
        times = []
        begin = start = clock(self.device)
        while len(times) < (1 if self.smoke else repeats) and start - begin < seconds:
            work()
            end = clock(self.device)
            times.append(end - start)
            start = end
        memory = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.on_gpu else process_memory()
        return {"seconds": statistics.median(times), "memory": memory}

    def free(self) -> None:
        torch._dynamo.reset()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def bounds(self, batch: int) -> dict[str, float]:
        """Seconds that the operations, and the bytes, of one call of ours take at the rates of this machine."""
        find, pixels = self.caller("ours", LABELS, TOKENS[LABELS]), self.pixels(batch)
        operators = {torch.ops.torchvision.deform_conv2d: deform_flops}
        with FlopCounterMode(display=False, custom_mapping=operators) as flops, BytesMoved() as moved:
            find(pixels)
        side = 8192 if self.on_gpu else 512
        matrix = torch.randn(side, side, device=self.device, dtype=self.dtype)
        multiplied = 2 * side**3 / self.measure(lambda: matrix @ matrix)["seconds"]
        copied = 2 * matrix.nbytes / self.measure(matrix.clone)["seconds"]
        return {
            "batch": batch,
            "operations": flops.get_total_flops(),
            "operations a second": multiplied,
            "seconds of operations": flops.get_total_flops() / multiplied,
            "bytes": moved.total,
            "bytes a second": copied,
            "seconds of bytes": moved.total / copied,
        }

    def fusion_forms(self) -> Iterator[dict[str, Any]]:
        """Seconds of the forms of one fusion, by number of tokens."""
        config = self.build("ours").config
        fusion: Any = GLIPv2BiAttention(config).eval().to(self.device, self.dtype)
        locations = sum(-(-self.size[0] // s) * -(-self.size[1] // s) for s in config.anchor_strides)
        vision = torch.randn(1, locations, config.d_model, device=self.device, dtype=self.dtype)
        for tokens in (*TOKENS.values(), VOCABULARIES[max(VOCABULARIES)][0]):
            width = config.text_config.hidden_size
            text = torch.randn(1, tokens, width, device=self.device, dtype=self.dtype)
            forms = {"absorbed": "attend_by_chunk", "SDPA": "attend_by_sdpa", "by head": "attend_by_head"}
            with torch.no_grad():
                times = {
                    name: self.measure(partial(getattr(fusion, form), vision, text, None, True), 5, 1.0)
                    for name, form in forms.items()
                }
            yield {"tokens": tokens, **{name: found["seconds"] for name, found in times.items()}}

    def deformable_forms(self) -> Iterator[dict[str, Any]]:
        """Seconds of the forms of one dynamic convolution, forward, and forward and backward, by precision."""
        config = self.build("ours").config
        shapes = [(-(-self.size[0] // s), -(-self.size[1] // s)) for s in config.anchor_strides]
        dtypes = (torch.float32, torch.bfloat16, torch.float16) if self.on_gpu else (torch.float32,)
        for dtype, (name, devices) in itertools.product(
            dtypes, (("sampling", {"cpu", "cuda"}), ("torchvision", set()))
        ):
            block = dyhead.GLIPv2DyConv(config).to(self.device, dtype)
            maps = tuple(torch.randn(1, config.d_model, *shape, device=self.device, dtype=dtype) for shape in shapes)

            def forward(block=block, maps=maps) -> None:
                with torch.no_grad():
                    block(maps)

            def backward(block=block, maps=maps) -> None:
                torch.stack([level.float().square().mean() for level in block(maps)]).sum().backward()

            found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "form": name}
            with replaced(dyhead, "SAMPLING_DEVICES", devices):
                for part, work in (("forward", forward), ("forward and backward", backward)):
                    try:
                        found[part] = self.measure(work, 5, 1.0)["seconds"]
                    except (RuntimeError, NotImplementedError) as error:
                        found[part] = str(error).splitlines()[0][:60]
            yield found


def peer_boxes(outputs: Any, size: tuple[int, int], threshold: float = 0.25) -> list[dict[str, torch.Tensor]]:
    """As `GroundingDinoProcessor.post_process_grounded_object_detection`, without reading labels off the tokens."""
    height, width = size
    scores = outputs.logits.sigmoid().amax(-1)
    boxes = box_convert(outputs.pred_boxes, "cxcywh", "xyxy")
    boxes = boxes * torch.tensor([width, height, width, height], device=boxes.device)
    return [
        {"scores": own[own > threshold].cpu(), "boxes": where[own > threshold].cpu()}
        for own, where in zip(scores, boxes, strict=True)
    ]


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Within the context an attribute of a module has another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


# Sections ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_inference(bench: Bench, budget: Budget, found: dict[str, Any]) -> None:
    """Images a second by batch, of both models, eager first: compiling takes longest."""
    for kind in sorted(KINDS, key=lambda kind: "compiled" in kind):
        compiled = "compiled" in kind
        if not budget.allows(kind, 0 if bench.smoke else 40 if compiled else 10):
            continue
        find = bench.caller(kind, LABELS, TOKENS[LABELS])
        # Batch 8 is what is compared, so it is the first to be compiled.
        for batch in sorted(bench.batches, key=lambda batch: (batch != 8, batch)):
            if compiled and not budget.allows(f"{kind}, batch {batch}", 0 if bench.smoke else 30):
                continue
            pixels = bench.pixels(batch)
            try:
                values = bench.measure(lambda find=find, pixels=pixels: find(pixels))
            except torch.OutOfMemoryError:
                found["inference"].append({"kind": kind, "batch": batch, "error": "out of memory"})
                continue
            speed = batch / values["seconds"]
            found["inference"].append({"kind": kind, "batch": batch, "images a second": speed, **values})
            print(found["inference"][-1], flush=True)
        del find
        bench.free()


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Every section that the time suffices for."""
    torch.set_num_threads(args.threads)
    bench, budget = Bench(args), Budget(args.seconds)
    found: dict[str, Any] = {
        "machine": machine_name(args),
        "image": list(bench.size),
        "smoke": args.smoke,
        "inference": [],
        "vocabulary": {},
        "training": {},
        "fusion": [],
        "deformable": [],
    }
    quick = 0 if bench.smoke else 1
    for kind in ("ours", "peer"):
        if budget.allows(f"training step, {kind}", 10 * quick):
            found["training"][kind] = bench.measure(bench.training_step(kind), 5)
            bench.free()
    if budget.allows("bounds", 5 * quick):
        with torch.no_grad():
            found["bounds"] = bench.bounds(bench.batches[1])
    for kind in ("ours", "peer"):
        if budget.allows(f"1,203 labels, {kind}", 10 * quick):
            with torch.no_grad():
                found["vocabulary"][kind] = bench.measure(bench.vocabulary(kind), 3)
            bench.free()
    for name, section in (("fusion", bench.fusion_forms), ("deformable", bench.deformable_forms)):
        if budget.allows(name, 10 * quick):
            found[name] = list(section())
            bench.free()
    measure_inference(bench, budget, found)
    found["left out"] = budget.skipped
    return found


# Report --------------------------------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """The Markdown tables."""
    height, width = found["image"]
    lines = [f"{found['machine']}; {height}x{width} pixels, random weights" + "; smoke test" * found["smoke"], ""]
    lines += [f"{LABELS} labels, {TOKENS[LABELS]} tokens, from pixels to boxes on the CPU:", ""]
    lines += table(
        ("model", "batch", "images a second", "ms an image", "GB"),
        [
            (entry["kind"], entry["batch"], entry["error"], "", "")
            if "error" in entry
            else (
                entry["kind"],
                entry["batch"],
                f"{entry['images a second']:.1f}",
                f"{1000 / entry['images a second']:.1f}",
                f"{entry['memory']:.2f}",
            )
            for entry in found["inference"]
        ],
    )
    for name, title in (("vocabulary", "1,203 labels, one image"), ("training", "A training step")):
        lines += [f"{title}:", ""]
        lines += table(
            ("model", "s", "GB"),
            [(kind, f"{one['seconds']:.3f}", f"{one['memory']:.2f}") for kind, one in found[name].items()],
        )
    if "bounds" in found:
        bounds = found["bounds"]
        lines += [f"Limits of the machine for ours at batch {bounds['batch']}, eager operators:", ""]
        for what, rate in (("operations", "a large matrix product"), ("bytes", "a copy")):
            amounts = f"{bounds[what] / 1e9:.0f} G {what} at {bounds[f'{what} a second'] / 1e9:.0f} G/s"
            lines.append(f"- {amounts} ({rate}): {bounds[f'seconds of {what}']:.4f} s")
        lines.append("")
    for name, title in (("fusion", "Forms of the fusion, ms"), ("deformable", "Forms of a dynamic convolution, ms")):
        if found[name]:
            lines += [f"{title}:", ""]
            lines += table(list(found[name][0]), [[milliseconds(v) for v in one.values()] for one in found[name]])
    lines += [f"- Left out: {what}." for what in found["left out"]]
    lines.append('The peer is Grounding DINO tiny; "compiled" is `torch.compile`, on a GPU with CUDA graphs.')
    return "\n".join(lines) + "\n"


def milliseconds(value: Any) -> Any:
    return f"{1000 * value:.2f}" if isinstance(value, float) else value


def table(columns: Any, rows: list[Any]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    return [row(*columns), row(*["---"] * len(columns)), *(row(*cells) for cells in rows), ""]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    found = measure_all(args)
    print(text := report(found))
    write_json(args.output / "gpu.json", found)
    write_text(args.output / "gpu.md", text)
    return found


if __name__ == "__main__":
    run(main)
