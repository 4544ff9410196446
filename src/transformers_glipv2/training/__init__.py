"""What the training scripts share. Never imported by model files."""

from transformers_glipv2.training.averaging import WeightAverage
from transformers_glipv2.training.batches import StepBatches, step_loader
from transformers_glipv2.training.checkpoints import (
    TrainingState,
    export_model,
    find_checkpoint,
    load_checkpoint,
    push_folder,
    save_checkpoint,
    write_json,
)
from transformers_glipv2.training.data_file import DataFile, load_sources, make_collator, make_mixture, read_data_file
from transformers_glipv2.training.evaluation import DetectionEvaluator
from transformers_glipv2.training.loop import TrainingPlan, train
from transformers_glipv2.training.optimization import SCHEDULES, learning_rate_factor, parameter_groups

__all__ = [
    "SCHEDULES",
    "DataFile",
    "DetectionEvaluator",
    "StepBatches",
    "TrainingPlan",
    "TrainingState",
    "WeightAverage",
    "export_model",
    "find_checkpoint",
    "learning_rate_factor",
    "load_checkpoint",
    "load_sources",
    "make_collator",
    "make_mixture",
    "parameter_groups",
    "push_folder",
    "read_data_file",
    "save_checkpoint",
    "step_loader",
    "train",
    "write_json",
]
