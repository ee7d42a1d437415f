"""The two patterns every GLM is built on, each said twice: in PyTorch, and as one ONNX node while exporting."""
