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
from transformers_glipv2.training.data_file import (
    DataFile,
    SamplerBySource,
    clean_name,
    load_sources,
    make_collator,
    make_mixture,
    make_sampler,
    read_data_file,
)
from transformers_glipv2.training.evaluation import DetectionEvaluator, make_evaluator
from transformers_glipv2.training.loop import TrainingPlan, train
from transformers_glipv2.training.optimization import SCHEDULES, learning_rate_factor, parameter_groups
from transformers_glipv2.training.tuning import FREEZABLE, TUNING_WAYS, freeze, load_tuned, prepare_tuning

__all__ = [
    "FREEZABLE",
    "SCHEDULES",
    "TUNING_WAYS",
    "DataFile",
    "DetectionEvaluator",
    "SamplerBySource",
    "StepBatches",
    "TrainingPlan",
    "TrainingState",
    "WeightAverage",
    "clean_name",
    "export_model",
    "find_checkpoint",
    "freeze",
    "learning_rate_factor",
    "load_checkpoint",
    "load_sources",
    "load_tuned",
    "make_collator",
    "make_evaluator",
    "make_mixture",
    "make_sampler",
    "parameter_groups",
    "prepare_tuning",
    "push_folder",
    "read_data_file",
    "save_checkpoint",
    "step_loader",
    "train",
    "write_json",
]
