"""Convolutions and products under one name: the operators that graph passes put in after differentiation."""

from vleak.native.convolution import conv_input, conv_output, conv_weight
from vleak.native.panel_product import PANEL, panel_product, panels
from vleak.native.product import product
from vleak.native.sparse_convolution import sparse_conv_input, sparse_conv_output, sparse_conv_weight

__all__ = [
    "PANEL",
    "conv_input",
    "conv_output",
    "conv_weight",
    "panel_product",
    "panels",
    "product",
    "sparse_conv_input",
    "sparse_conv_output",
    "sparse_conv_weight",
]
