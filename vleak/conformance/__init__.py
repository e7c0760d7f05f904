"""Conformance of defenses: what they say about their messages, checked on what they send."""

from vleak.conformance.conform import FALSE_ALARM, Check, Conformance, conform

__all__ = ["FALSE_ALARM", "Check", "Conformance", "conform"]
