"""The openvino format: a model file of OpenVINO and its weights."""
