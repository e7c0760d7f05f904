"""The study: claims about inverting gradients of video, each asked on runs of its own."""

from vleak.study.study import Study, run_study

__all__ = ["Study", "run_study"]
