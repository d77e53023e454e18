"""ONNX files of models, and their check by ONNX Runtime."""
