"""Export of programs to ONNX and StableHLO, and their costs on other platforms."""
