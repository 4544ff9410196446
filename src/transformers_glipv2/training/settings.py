"""The settings of a run: recorded, and compared when it is resumed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

# What may change when a run is resumed: it goes on with the new value. Anything else makes another run.
MAY_CHANGE = frozenset(
    {
        "compile",
        "eval_steps",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "head_factor",
        "learning_rate",
        "max_new_tokens",
        "mixed_precision",
        "num_beams",
        "num_steps",
        "num_workers",
        "patience",
        "prefix",
        "save_steps",
        "schedule",
        "test_split",
        "trackers",
        "warmup_steps",
    }
)
# What says nothing about the run.
_NOT_COMPARED = frozenset({"allow_custom_loaders", "output", "push_to_hub", "resume"})


def describe_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    Settings as they are recorded: what JSON holds, paths absolute, and of files (a data file, a list of answers) also
    a digest of the content.

    Args:
        settings (`Mapping[str, Any]`): such as `vars(args)`.
    """
    described = {}
    for name, value in settings.items():
        is_path = isinstance(value, Path) or (isinstance(value, str) and os.path.sep in value)
        if is_path and os.path.exists(value):
            described[name] = os.path.realpath(value)
            if os.path.isfile(value):
                described[f"content of {name}"] = hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
        else:
            described[name] = value
    return json.loads(json.dumps(described, default=str))


def compare_settings(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """
    Compares the settings of a run with those that it is resumed with; what may change is logged.

    Args:
        saved, settings (`Mapping[str, Any]`): as of `describe_settings`. Names that only one of them has say nothing.

    Raises:
        ValueError: when a setting changed that makes another run; names each, with both values.
    """
    changed = {
        name: f"{name} was {saved[name]}, now {settings[name]}"
        for name in saved.keys() & settings.keys() - _NOT_COMPARED
        if saved[name] != settings[name]
    }
    refused = [changed[name] for name in sorted(changed) if name not in MAY_CHANGE]
    if refused:
        raise ValueError(
            f"the checkpoint belongs to another run: {'; '.join(refused)}. Resume with the settings that the run "
            "began with, or start a new one with another `--output`."
        )
    if changed:
        logger.warning(f"the run goes on with other settings: {'; '.join(changed[name] for name in sorted(changed))}")
