"""
Measures GLIPv2-tiny beside transformers' Grounding DINO tiny: seconds, peak memory and their ratios, from one run.

    python benchmarks/speed.py --output benchmark.md          # two CPU threads, float32, about ten minutes
    python benchmarks/speed.py --device cuda                  # bfloat16, eager and compiled

Both have random weights, which cost the same as trained ones, and see one image. Each runs in a process of its own
while the other waits, in turns, and the fastest turn counts. Prompts are random tokens, as many as the labels of COCO
and LVIS have in BERT's vocabulary.
"""

import argparse
import itertools
import multiprocessing
import re
import resource
import time
from collections import defaultdict
from pathlib import Path

import torch
import torchvision
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_device,
    add_output_file,
    add_timing,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_text
from transformers_glipv2.inference.batching import PreparedImage
from transformers_glipv2.inference.detector import Detector, EncodedPrompt
from transformers_glipv2.post_processing import Limits, batch_detections

# Labels of a prompt and their tokens, ascending, as a process remembers its highest memory only.
TOKENS = {10: 22, 39: 112, 80: 195}
# The 1,203 labels of LVIS, a few at a time and as many as fit: labels of a prompt, its tokens, and prompts.
VOCABULARIES = {39: (112, 31), 86: (246, 14)}
PARTS = {
    "backbone": r"model\.backbone",
    "pyramid": r"model\.neck",
    "text encoder": r"model\.text_encoder",
    "fusion": r"model\.layers\.\d+\.fusion",
    "fused text layers": r"model\.layers\.\d+\.text_layer",
    "dynamic convolution": r"model\.layers\.\d+\.dyconv",
    "head": r"detection_head",
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_device(parser, default="cpu")
    add_timing(parser, 3, "turns of each model")
    add("--height", type=positive_int, default=800, help="of the image (default: 800)")
    add("--width", type=positive_int, default=1066, help="of the image (default: 1066)")
    add("--scale", choices=("tiny", "nano"), default="tiny", help="size of GLIPv2 (default: tiny)")
    add_output_file(parser, "Markdown file to write the tables to as well")
    return parser.parse_args(arguments)


class Worker:
    """One model and the measurements of it; `kind` is "ours", "compiled" or "peer"."""

    def __init__(self, kind: str, args: argparse.Namespace):
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        self.kind, self.device = kind, torch.device(args.device)
        with torch.device("meta"):
            build(kind, args.scale)  # imports what building imports
        self.imports = process_memory()
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
        self.model = build(kind, args.scale).eval().to(self.device, dtype)
        self.call = torch.compile(self.model) if kind == "compiled" else self.model
        self.pixel_values = torch.randn(1, 3, args.height, args.width, device=self.device, dtype=dtype)
        self.parts: dict[str, float] = defaultdict(float)
        for part, pattern in PARTS.items() if kind == "ours" else ():
            for name, module in self.model.named_modules():
                if re.fullmatch(pattern, name):
                    module.register_forward_pre_hook(lambda *_, part=part: self.add(part, -self.now()))
                    module.register_forward_hook(lambda *_, part=part: self.add(part, self.now()))

    def add(self, part: str, seconds: float) -> None:
        self.parts[part] += seconds

    def forward(self, labels: int) -> dict:
        """One image and one prompt, from pixels to boxes (of the peer: to its outputs)."""
        input_ids = torch.randint(2000, 20000, (1, TOKENS[labels]), device=self.device)
        self.parts.clear()
        start = self.now()
        output = self.call(self.pixel_values, input_ids, attention_mask=torch.ones_like(input_ids))
        if self.kind != "peer":
            before = self.now()
            # The worst case.
            batch_detections(output, [label_map(labels, TOKENS[labels])], limits=Limits(threshold=0.0))
            self.parts["post-processing"] = self.now() - before
        return {"seconds": self.now() - start, "memory": self.peak_memory(), "parts": dict(self.parts)}

    def vocabulary(self, labels: int) -> dict:
        tokens, count = VOCABULARIES[labels]
        ids, words = torch.randint(2000, 20000, (count, tokens)).tolist(), label_map(labels, tokens)
        prompts = [EncodedPrompt(ids[i], words, list(range(i * labels, (i + 1) * labels))) for i in range(count)]
        # Without a processor: images and prompts are prepared already.
        detector = Detector(self.model, None)
        mask = torch.ones_like(self.pixel_values[:, 0], dtype=torch.long)
        image = PreparedImage(self.pixel_values, mask, tuple(self.pixel_values.shape[-2:]), prompts)
        start = self.now()
        features = detector.network.get_image_features(self.pixel_values, mask)
        with tqdm(total=count, desc="1,203 labels", leave=False) as bar:
            detector.find(features, [image], detector.options, on_forward=bar.update)
        return {"seconds": self.now() - start, "memory": self.peak_memory()}

    def bounds(self, labels: int) -> dict:
        """What one forward multiplies and moves, and how much of either this machine does in a second."""
        operators = {torch.ops.torchvision.deform_conv2d: deform_flops}
        with FlopCounterMode(display=False, custom_mapping=operators) as flops, BytesMoved() as moved:
            self.forward(labels)
        side = 2048 if self.device.type == "cpu" else 8192
        matrix = torch.randn(side, side, device=self.device, dtype=self.model.dtype)
        return {
            "operations": (flops.get_total_flops(), 2 * side**3 / self.fastest(lambda: matrix @ matrix)),
            "bytes": (moved.total, 2 * matrix.nbytes / self.fastest(matrix.clone)),
        }

    def fastest(self, work) -> float:
        times = [self.now(), *((work(), self.now())[1] for _ in range(10))]
        return min(after - before for before, after in itertools.pairwise(times))

    def now(self) -> float:
        return clock(self.device)

    def peak_memory(self) -> float:
        on_gpu = self.device.type != "cpu"
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if on_gpu else process_memory() - self.imports


def build(kind: str, scale: str) -> torch.nn.Module:
    if kind == "peer":
        return GroundingDinoForObjectDetection(GroundingDinoConfig())
    # Without the cache of texts, which would hide what they cost.
    return GLIPv2ForObjectDetection(GLIPv2Config.from_size(scale))


def clock(device: torch.device) -> float:
    """Seconds, when a device has finished all its work."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def process_memory() -> float:
    """The most that this process has held, in GB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def label_map(labels: int, tokens: int) -> torch.Tensor:
    """`(labels, tokens)`: the tokens of a prompt, without its special ones, divided among the labels."""
    indices = torch.arange(tokens)
    owners = (indices - 1) * labels // (tokens - 2)
    return (owners == torch.arange(labels)[:, None]) & (indices > 0) & (indices < tokens - 1)


def deform_flops(x_shape, weight_shape, offset_shape, *args, out_shape=None, **kwargs) -> int:
    """Of torchvision's operator: a 3x3 convolution at every location that has offsets."""
    return 2 * torch.Size(weight_shape).numel() * offset_shape[0] * offset_shape[2] * offset_shape[3]


class BytesMoved(TorchDispatchMode):
    """Adds up what every operator reads and writes; views move nothing."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs, outputs = ([x for x in tree_leaves(t) if torch.is_tensor(x)] for t in ((args, kwargs), result))
        sources = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        is_view = any(tensor.untyped_storage().data_ptr() in sources for tensor in outputs)
        if func._schema.is_mutable or not is_view:
            self.total += sum(tensor.nbytes for tensor in inputs + outputs)
        return result


@torch.no_grad()
def serve(connection, kind: str, args: argparse.Namespace) -> None:
    """Measures what comes over `connection`, (method, labels), until `None` does."""
    worker = Worker(kind, args)
    for method, labels in iter(connection.recv, None):
        connection.send(getattr(worker, method)(labels))


def measure(kinds: list[str], args: argparse.Namespace) -> dict:
    """By kind and labels the fastest turn; long vocabularies under "vocabulary"; the bounds under "bounds"."""
    context, connections = multiprocessing.get_context("spawn"), {}
    for kind in kinds:
        connections[kind], end = context.Pipe()
        context.Process(target=serve, args=(end, kind, args), daemon=True).start()
        end.close()  # so that a process that fails is noticed

    def ask(kind: str, *request: object) -> dict:
        connections[kind].send(request)
        return connections[kind].recv()

    turns, results = [(labels, kind) for labels in TOKENS for _ in range(args.repeats + 1) for kind in kinds], {}
    for labels, kind in tqdm(turns):
        results.setdefault((kind, labels), []).append(ask(kind, "forward", labels))
    # Without the first turn, which warms up.
    best = {key: min(found[1:], key=lambda result: result["seconds"]) for key, found in results.items()}
    for labels in VOCABULARIES:
        best["vocabulary", labels] = ask("ours", "vocabulary", labels)
    best["bounds"] = ask("ours", "bounds", 80)
    for connection in connections.values():
        connection.send(None)
    return best


def vocabulary_row(labels: int, found: dict, separate: float, peer: float) -> str:
    ratios = (f"{separate / found['seconds']:.2f}", f"{found['seconds'] / peer:.2f}")
    prompts = f"one call, {VOCABULARIES[labels][1]} prompts of {labels}"
    return row(prompts, f"{found['seconds']:.1f}", f"{found['memory']:.2f}", *ratios)


def machine_name(args: argparse.Namespace) -> str:
    """What measured: processor, threads, precision and versions."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) or ["unknown CPU"]
    machine = f"{names[0]}, {args.threads} threads, float32"
    if args.device != "cpu":
        machine = f"{torch.cuda.get_device_name(args.device)}, bfloat16"
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, torchvision, transformers))
    return f"{machine}; {versions}"


def report(best: dict, kinds: list[str], args: argparse.Namespace) -> str:
    cpu = args.device == "cpu"
    separate, peer = (VOCABULARIES[39][1] * best[kind, 39]["seconds"] for kind in ("ours", "peer"))
    lines = [
        f"{machine_name(args)}; {args.height}x{args.width}, batch 1\n",
        row("labels", "tokens", *(f"{kind}: {unit}" for kind in kinds for unit in ("s", "GB")), "time", "memory"),
        row(*["---"] * (4 + 2 * len(kinds))),
    ]
    for labels, tokens in TOKENS.items():
        cells = [f"{best[kind, labels][what]:.3f}" for kind in kinds for what in ("seconds", "memory")]
        ratios = [best["ours", labels][what] / best["peer", labels][what] for what in ("seconds", "memory")]
        lines.append(row(labels, tokens, *cells, *(f"{ratio:.2f}" for ratio in ratios)))
    lines += [
        f"\nOurs is GLIPv2-{args.scale}, the peer Grounding DINO tiny; the last columns: ours / peer. Memory is the",
        f"most held, with weights, {'without imports' if cpu else 'on the GPU'}.\n",
        row("1,203 labels", "seconds", "GB", "separate calls / this", "this / peer"),
        row(*["---"] * 5),
        *(vocabulary_row(labels, best["vocabulary", labels], separate, peer) for labels in VOCABULARIES),
        f"\n31 separate calls of 39 labels (31 x one): {separate:.1f} s; the peer, extrapolated: {peer:.1f} s.\n",
        row("part of ours", *(f"{labels} labels: s" for labels in TOKENS)),
        row(*["---"] * (1 + len(TOKENS))),
    ]
    for part in [*PARTS, "post-processing"]:
        lines.append(row(part, *(f"{best['ours', labels]['parts'][part]:.3f}" for labels in TOKENS)))
    lines.append("\nLimits of this machine, for 80 labels:\n")
    for name, what in (("operations", "a large matrix product"), ("bytes", "a copy; traffic of eager operators")):
        amount, rate = best["bounds"][name]
        lines.append(f"- {amount / 1e9:.0f} G {name} at {rate / 1e9:.0f} G/s ({what}): {amount / rate:.3f} s")
    return "\n".join(lines)


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    kinds = ["ours", *(() if args.device == "cpu" else ("compiled",)), "peer"]
    print(text := report(measure(kinds, args), kinds, args))
    if args.output:
        write_text(args.output, text + "\n")


if __name__ == "__main__":
    run(main)
