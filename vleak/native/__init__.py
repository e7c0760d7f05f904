"""Native code: the operators with their plain-PyTorch implementations, and building and loading of csrc.

An operator has one stem from ``csrc/kernels/STEM.cpp`` over ``csrc/bindings/STEM.cpp`` to
``vleak/native/STEM.py``. The Python file holds its schema, checks, plain implementation, fake and derivative;
C++ only adds a faster implementation, so every operator exists on every machine.
"""

from vleak.native import bilinear, build, loader, operators
from vleak.native.activation import ACTIVATIONS, activation_backward, activation_second, softmax_second
from vleak.native.backend import backend, use_reference
from vleak.native.batch_norm import batch_norm, batch_norm_backward, batch_norm_second, batch_statistics
from vleak.native.checks import DTYPES
from vleak.native.convolution import conv_input, conv_output, conv_weight
from vleak.native.descend import StepSettings, descend, descend_with, step_settings
from vleak.native.gradient_match import gradient_match
from vleak.native.layer_norm import layer_norm, layer_norm_backward, layer_norm_second
from vleak.native.loader import ExtensionStatus, ExtensionWarning, loop_module, status
from vleak.native.max_pool import max_pool
from vleak.native.panel_product import PANEL, panel_product, panels
from vleak.native.product import product
from vleak.native.sparse_convolution import sparse_conv_input, sparse_conv_output, sparse_conv_weight
from vleak.native.total_variation import total_variation

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "PANEL",
    "ExtensionStatus",
    "ExtensionWarning",
    "StepSettings",
    "activation_backward",
    "activation_second",
    "backend",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_second",
    "batch_statistics",
    "bilinear",
    "build",
    "conv_input",
    "conv_output",
    "conv_weight",
    "descend",
    "descend_with",
    "gradient_match",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_second",
    "loader",
    "loop_module",
    "max_pool",
    "operators",
    "panel_product",
    "panels",
    "product",
    "softmax_second",
    "sparse_conv_input",
    "sparse_conv_output",
    "sparse_conv_weight",
    "status",
    "step_settings",
    "total_variation",
    "use_reference",
]
