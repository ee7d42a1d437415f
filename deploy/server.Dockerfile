# syntax=docker/dockerfile:1
# The server on a processor, with the embedded models unless told otherwise. From the top of a checkout:
#
#   docker build --file deploy/server.Dockerfile --tag glm-export-server .
#   docker run --rm --publish 127.0.0.1:8000:8000 --read-only --tmpfs /tmp glm-export-server
#
# Requests want a key; the image has one, random, which `docker exec NAME cat /run/secrets/keys` shows. A model and keys
# of one's own, where others reach the port:
#
#   docker run --rm --publish 8000:8000 --read-only --tmpfs /tmp --volume "$PWD/chatglm3-ort:/models/chatglm3-ort:ro" \
#       --volume "$PWD/keys.txt:/run/secrets/keys:ro" glm-export-server /models/chatglm3-ort
#
# Not built by the authors yet: they had no builder.
FROM python:3.11-slim AS built

# PyTorch without CUDA: a program of ONNX does not need it to run, a checkpoint does.
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
RUN pip install --no-cache-dir 'torch>=2.11,<2.15' --index-url https://download.pytorch.org/whl/cpu

WORKDIR /opt/glm-export
COPY requirements/serve.lock requirements/serve.lock
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/serve.lock
COPY . .
RUN pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
COPY --from=built /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/tmp

RUN mkdir -p /run/secrets && python -c "import secrets; print(secrets.token_urlsafe(32))" > /run/secrets/keys \
    && chmod 444 /run/secrets/keys && useradd --uid 10001 --no-create-home server
USER 10001

EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["glm-export", "serve", "--host", "0.0.0.0", "--api-key-file", "/run/secrets/keys"]
CMD ["demo", "demo-glm"]
