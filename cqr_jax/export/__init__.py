"""Programs for other runtimes (ONNX, StableHLO), and costs on other platforms."""
