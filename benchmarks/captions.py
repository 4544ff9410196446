"""
Measures how fast captions are generated, with kept keys and values and without: words per second and their ratios.

    python benchmarks/captions.py --model hub_upload/glipv2-nano --output captions.md

All run in one process, in turns, and the fastest turn counts. Every caption is of `--words` words (tokens), so that
what the model says does not matter; the image is encoded beforehand, as it is encoded once either way.
"""

import argparse
import time
from pathlib import Path

import torch
import transformers

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.files import write_text
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration

BEAMS = {"greedy": 1, "beam 5": 5}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model", required=True, help="folder or Hub id; a caption head that is missing costs what a trained one does"
    )
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add("--words", type=int, default=20, help="of each caption (default: 20)")
    add("--runs", type=int, default=3, choices=range(1, 100), metavar="N", help="turns (default: 3)")
    add("--size", type=int, nargs=2, help="height and width of the image (default: the processor's)")
    add("--output", type=Path, help="file to write the table to as well")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    args = parse_args(arguments)
    torch.set_num_threads(args.threads)
    processor = GLIPv2Processor.from_pretrained(args.model)
    model = GLIPv2ForConditionalGeneration.from_pretrained(args.model).to(args.device).eval()
    model.set_special_tokens(processor.tokenizer)
    size = processor.image_processor.size
    height, width = args.size or (size["shortest_edge"], size["longest_edge"])
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
            min_new_tokens=args.words,
            max_new_tokens=args.words,
        )
        synchronize(args.device)
        # The first one is the beginning.
        if tokens.shape[1] != args.words + 1:
            raise ValueError(f"`--words` is {args.words}, and the model writes {tokens.shape[1] - 1} at most.")
        return time.perf_counter() - start

    times: dict[tuple[str, bool], list[float]] = {}
    seconds(1, True)
    for _ in range(args.runs):
        for name, num_beams in BEAMS.items():
            for use_cache in (True, False):
                times.setdefault((name, use_cache), []).append(seconds(num_beams, use_cache))
    speeds = {key: args.words / min(values) for key, values in times.items()}
    results = {
        name: {
            "words per second, cached": round(speeds[name, True], 1),
            "words per second, recomputed": round(speeds[name, False], 1),
            "ratio": round(speeds[name, True] / speeds[name, False], 2),
        }
        for name in BEAMS
    }
    columns = list(results["greedy"])
    lines = [
        f"Captions of {args.words} words, an image of {height}x{width}, {args.device}"
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
    main()
