# syntax=docker/dockerfile:1
# NVIDIA's TensorRT image with glm-export in it. From the top of a checkout, TAG being one whose TensorRT is 10.15 or later
# by NVIDIA's release notes (docs.nvidia.com/deeplearning/tensorrt/container-release-notes), such as YY.MM-py3:
#
#   docker build --file deploy/tensorrt.Dockerfile --build-arg TAG=YY.MM-py3 --tag glm-export-tensorrt .
#   docker run --rm --gpus all --ipc host --volume "$PWD/gpu-results:/results" --volume "$PWD/gpu-work:/work" \
#       glm-export-tensorrt
#
# The second runs everything benchmarks/gpu/run.sh has; names of parts behind it run those. Other verbs:
#
#   docker run --rm --gpus all --volume "$PWD:/data" --workdir /data --entrypoint glm-export glm-export-tensorrt doctor
#
# Not built by the authors yet: they had neither docker nor a GPU. The instructions were parsed by docker's own parser.
ARG TAG
FROM nvcr.io/nvidia/tensorrt:${TAG}

# PyTorch for CUDA 13, whose libraries ONNX Runtime's CUDA provider loads, too; another CUDA, another index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130

WORKDIR /opt/glm-export

# TensorRT is the image's own, which has trtexec as well, so the environment sees the image's packages.
RUN python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH

RUN pip install --no-cache-dir 'torch>=2.11,<2.15' --index-url ${TORCH_INDEX}
COPY requirements/run.lock requirements/run.lock
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/run.lock

COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

# A tag with an older TensorRT ends here, not in the first engine.
RUN python -c "import tensorrt as t; v = tuple(map(int, t.__version__.split('.')[:2])); assert v >= (10, 15), t.__version__"

ENTRYPOINT ["bash", "benchmarks/gpu/run.sh", "--python", "/opt/venv/bin/python", "--work", "/work", "--out", "/results"]
