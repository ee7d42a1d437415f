"""Running a model: one protocol, one room for each runtime.

``session.py`` is what every runtime offers, ``turns.py`` whose it is, ``kv_cache.py`` how each keeps rows from one call
to the next, ``load.py`` which of them runs what.

Imports engines, inputs, artifacts, tokenizers; PyTorch in ``torch.py``, ONNX Runtime in ``onnxruntime/``, TensorRT in
``tensorrt/``, which know nothing of each other.
"""
