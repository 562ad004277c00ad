"""Figures of what a sweep found: values in, a matplotlib figure out."""

from dmlscale.tuning.figures.final_comparison import final_comparison
from dmlscale.tuning.figures.importance_bars import importance_bars
from dmlscale.tuning.figures.learning_curves import learning_curves
from dmlscale.tuning.figures.parallel_coordinates import parallel_coordinates
from dmlscale.tuning.figures.pareto_front import pareto_front

__all__ = ["final_comparison", "importance_bars", "learning_curves", "parallel_coordinates", "pareto_front"]
