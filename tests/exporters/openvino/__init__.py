"""Tests of finetune/exporters/openvino."""
