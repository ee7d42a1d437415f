"""Which of TensorRT's names a module uses, read from its text.

``modules`` reads files, ``strings`` what names are asked for, ``kinds`` and ``objects`` say what an expression stands
for, and ``uses`` puts these together.
"""
