"""What every room speaks of, as frozen records: sizes, signatures, dtypes, weight formats, profiles.

Imports errors alone; neither ONNX nor a runtime, and torch only for the types of :mod:`glm_export.spec.weight_map`.
"""
