"""Running a model: one protocol, one room for each runtime.

Imports engines, inputs, artifacts, tokenizers; PyTorch in ``torch.py``, ONNX Runtime in ``onnxruntime/``, TensorRT in
``tensorrt/``, which know nothing of each other.
"""
