"""Doors for training frameworks: what a client trains or sends is recorded, audited or held back."""

from vleak.frameworks.flower import FlowerMod
from vleak.frameworks.gate import Gate, RefusedError
from vleak.frameworks.nvflare import NvflareFilter
from vleak.frameworks.opacus import Finding, OpacusCheck
from vleak.frameworks.watching import Watch, watch

__all__ = ["Finding", "FlowerMod", "Gate", "NvflareFilter", "OpacusCheck", "RefusedError", "Watch", "watch"]
