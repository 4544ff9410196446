"""What the training scripts share. Never imported by model files."""

from transformers_glipv2.training.averaging import WeightAverage
from transformers_glipv2.training.batches import StepBatches, step_loader, steps_of_epochs
from transformers_glipv2.training.captioning import CaptionEvaluator, best_constant_caption, caption_scores
from transformers_glipv2.training.checkpoints import (
    TrainingState,
    export_model,
    find_checkpoint,
    load_checkpoint,
    push_folder,
    save_checkpoint,
)
from transformers_glipv2.training.collators import (
    AnswerCollator,
    CaptionCollator,
    JointCollator,
    ablate_images,
)
from transformers_glipv2.training.compiling import FixedShapes, compile_network
from transformers_glipv2.training.data_file import (
    DataFile,
    SamplerBySource,
    is_data_file,
    load_sources,
    make_collator,
    make_mixture,
    make_sampler,
    read_data_file,
)
from transformers_glipv2.training.evaluation import DetectionEvaluator, evaluation_examples, make_evaluator
from transformers_glipv2.training.heads import (
    answers_are_new,
    contrastive_head_of,
    keep_known_answers,
    load_other_heads,
)
from transformers_glipv2.training.learnable import require_learnable
from transformers_glipv2.training.loop import TrainingPlan, train
from transformers_glipv2.training.optimization import (
    SCHEDULES,
    head_groups,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
)
from transformers_glipv2.training.tuning import FREEZABLE, FROZEN_WAYS, TRAIN_WAYS, freeze, prepare_tuning
from transformers_glipv2.training.vqa import (
    AnswerEvaluator,
    answers_of_sources,
    best_constant_answers,
    frozen_batches,
    repeated,
)

__all__ = [
    "FREEZABLE",
    "FROZEN_WAYS",
    "SCHEDULES",
    "TRAIN_WAYS",
    "AnswerCollator",
    "AnswerEvaluator",
    "CaptionCollator",
    "CaptionEvaluator",
    "DataFile",
    "DetectionEvaluator",
    "FixedShapes",
    "JointCollator",
    "SamplerBySource",
    "StepBatches",
    "TrainingPlan",
    "TrainingState",
    "WeightAverage",
    "ablate_images",
    "answers_are_new",
    "answers_of_sources",
    "best_constant_answers",
    "best_constant_caption",
    "caption_scores",
    "compile_network",
    "contrastive_head_of",
    "evaluation_examples",
    "export_model",
    "find_checkpoint",
    "freeze",
    "frozen_batches",
    "head_groups",
    "is_data_file",
    "keep_known_answers",
    "learning_rate_factor",
    "load_checkpoint",
    "load_other_heads",
    "load_sources",
    "make_collator",
    "make_evaluator",
    "make_mixture",
    "make_optimizer",
    "make_sampler",
    "parameter_groups",
    "prepare_tuning",
    "push_folder",
    "read_data_file",
    "repeated",
    "require_learnable",
    "save_checkpoint",
    "step_loader",
    "steps_of_epochs",
    "train",
]
