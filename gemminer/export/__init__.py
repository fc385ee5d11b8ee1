"""Ticketed networks in the formats that other programs run: ONNX, and PyTorch's own without the network's class."""

from gemminer.export.onnx_file import onnx
from gemminer.export.portable import Exported
from gemminer.export.pt2_file import pt2

__all__ = ["Exported", "onnx", "pt2"]
