"""A module that cannot be imported."""

raise RuntimeError("weights are missing")
