"""Recipes, training, evaluation and prediction."""

from minmax_entropy.data.limits import allow_pixels
from minmax_entropy.data.preprocess import preprocess_for
from minmax_entropy.engine.diagnosis import warnings_of
from minmax_entropy.engine.evaluate import Evaluation, evaluate, evaluate_all_ones
from minmax_entropy.engine.faithfulness import Probes
from minmax_entropy.engine.loop import TrainingError, TrainingResult
from minmax_entropy.engine.recipes import RECIPES, Recipe, get_recipe, step_decay, warmup_cosine
from minmax_entropy.engine.run import Run
from minmax_entropy.engine.threshold import ProbabilityChoice, ThresholdChoice, choose_min_probability, choose_threshold
from minmax_entropy.engine.train import fit
from minmax_entropy.inference.filters import create_refinement, list_refinements, register_refinement
from minmax_entropy.inference.options import Inference
from minmax_entropy.inference.prediction import Prediction
from minmax_entropy.inference.predictor import predict_images

__all__ = [
    "RECIPES",
    "Evaluation",
    "Inference",
    "Prediction",
    "ProbabilityChoice",
    "Probes",
    "Recipe",
    "Run",
    "ThresholdChoice",
    "TrainingError",
    "TrainingResult",
    "allow_pixels",
    "choose_min_probability",
    "choose_threshold",
    "create_refinement",
    "evaluate",
    "evaluate_all_ones",
    "fit",
    "get_recipe",
    "list_refinements",
    "predict_images",
    "preprocess_for",
    "register_refinement",
    "step_decay",
    "warmup_cosine",
    "warnings_of",
]
