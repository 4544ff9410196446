"""
Measures how fast captions are generated, with cached keys and values and without: tokens per second and their ratios.

    python benchmarks/captions.py --model hub_upload/glipv2-nano --output captions.md

All run in one process, in turns, and the fastest turn counts. Every caption has `--tokens` tokens, so that what the
model says does not matter; the image is encoded beforehand, as it is encoded once either way.
"""

import argparse
import time

import torch
import transformers

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_device,
    add_model,
    add_output_file,
    add_timing,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_text
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration

BEAMS = {"greedy": 1, "beam 5": 5}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id; a caption head that is missing costs what a trained one does")
    add_device(parser, default="cpu")
    add_timing(parser, 3, "turns")
    add("--tokens", type=positive_int, default=20, help="of each caption (default: 20)")
    add("--height", type=positive_int, help="of the image (default: the processor's shortest edge)")
    add("--width", type=positive_int, help="of the image (default: the processor's longest edge)")
    add_output_file(parser, "Markdown file to write the table to as well")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    args = check_paths(parse_args(arguments))
    torch.set_num_threads(args.threads)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForConditionalGeneration.from_pretrained(args.model).to(args.device).eval()
    model.set_special_tokens(processor.tokenizer)
    size = processor.image_processor.size
    height, width = args.height or size["shortest_edge"], args.width or size["longest_edge"]
    torch.manual_seed(0)
    features = model.get_image_features(torch.randn(1, 3, height, width, device=args.device))
    states = model.get_visual_states(features)

    def seconds(num_beams: int, use_cache: bool) -> float:
        synchronize(args.device)
        start = time.perf_counter()
        tokens = model.generate(
            visual_states=states,
            num_beams=num_beams,
            use_cache=use_cache,
            do_sample=False,
            min_new_tokens=args.tokens,
            max_new_tokens=args.tokens,
        )
        synchronize(args.device)
        # The first token begins the caption.
        if tokens.shape[1] != args.tokens + 1:
            raise ValueError(f"`--tokens` is {args.tokens}, and the model writes {tokens.shape[1] - 1} at most.")
        return time.perf_counter() - start

    times: dict[tuple[str, bool], list[float]] = {}
    seconds(1, True)
    for _ in range(args.repeats):
        for name, num_beams in BEAMS.items():
            for use_cache in (True, False):
                times.setdefault((name, use_cache), []).append(seconds(num_beams, use_cache))
    speeds = {key: args.tokens / min(values) for key, values in times.items()}
    results = {
        name: {
            "tokens per second, cached": round(speeds[name, True], 1),
            "tokens per second, recomputed": round(speeds[name, False], 1),
            "ratio": round(speeds[name, True] / speeds[name, False], 2),
        }
        for name in BEAMS
    }
    columns = list(results["greedy"])
    lines = [
        f"Captions of {args.tokens} tokens, an image of {height}x{width}, {args.device}"
        + (f" with {args.threads} threads" if args.device == "cpu" else "")
        + f", torch {torch.__version__}, transformers {transformers.__version__}.",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(str(row[column]) for column in columns)} |" for name, row in results.items()),
    ]
    print("\n".join(lines))
    if args.output is not None:
        write_text(args.output, "\n".join(lines) + "\n")
    return results


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run(main)
