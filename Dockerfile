# qexport on CPUs, for TFLite, ONNX Runtime and OpenVINO, at the versions that the tests ran with:
#   docker build -t qexport .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" qexport best.pt --int8 --data mine.yaml
FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/qexport
ENV PATH=/opt/qexport/bin:$PATH
WORKDIR /source
COPY constraints.txt locks/runtime.txt ./
RUN pip install --no-deps --only-binary :all: --require-hashes -r runtime.txt \
 && pip install torch torchvision -c constraints.txt --index-url "$TORCH_INDEX"
COPY pyproject.toml README.md LICENSE ./
COPY qexport qexport
COPY calibration_data calibration_data
COPY configs configs
RUN pip install --no-deps --no-build-isolation . && pip check

FROM python:3.12-slim-bookworm
# OpenCV loads them; Debian keeps no older versions that could be named.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 qexport
COPY --from=build /opt/qexport /opt/qexport
ENV PATH=/opt/qexport/bin:$PATH
USER 1000
WORKDIR /work
ENTRYPOINT ["qexport"]
CMD ["--help"]
