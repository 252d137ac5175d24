"""The engine: recipes, training, evaluation, prediction."""

from minmax_entropy.engine.evaluate import Evaluation, evaluate, evaluate_all_ones, predict_images, preprocess_for
from minmax_entropy.engine.recipes import RECIPES, Recipe, get_recipe, step_decay, warmup_cosine
from minmax_entropy.engine.train import Run, TrainingError, TrainingResult, fit

__all__ = [
    "RECIPES",
    "Evaluation",
    "Recipe",
    "Run",
    "TrainingError",
    "TrainingResult",
    "evaluate",
    "evaluate_all_ones",
    "fit",
    "get_recipe",
    "predict_images",
    "preprocess_for",
    "step_decay",
    "warmup_cosine",
]
