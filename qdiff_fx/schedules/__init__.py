"""Where along a trajectory steps count: which of a sampler's steps to take, and schedulers that take them."""

from qdiff_fx.schedule import Schedule
from qdiff_fx.schedules.optimize import optimize_schedule
from qdiff_fx.schedules.walk import schedule_of, uniform, with_schedule, without_schedule

__all__ = ["Schedule", "optimize_schedule", "schedule_of", "uniform", "with_schedule", "without_schedule"]
