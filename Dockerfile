# docker build -t sparsecc . && docker run --rm -v "$PWD:/work" sparsecc compile model.onnx --target onnxruntime
# The image says what is in it, as CycloneDX:  docker run --rm --entrypoint cat sparsecc /opt/sparsecc/sbom.json
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sparsecc sparsecc
COPY passes passes
COPY backends backends
RUN python -m venv /opt/sparsecc \
    && /opt/sparsecc/bin/python -m pip install --no-cache-dir -c constraints.txt '.[board,sign]'
RUN python -m venv /opt/tools \
    && /opt/tools/bin/python -m pip install --no-cache-dir -c constraints.txt cyclonedx-bom \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible --of JSON --pyproject pyproject.toml \
        -o /opt/sparsecc/sbom.json /opt/sparsecc/bin/python

FROM python:3.12-slim-bookworm
RUN groupadd --gid 10001 sparsecc \
    && useradd --uid 10001 --gid sparsecc --no-log-init --create-home sparsecc
COPY --from=build /opt/sparsecc /opt/sparsecc
ENV PATH=/opt/sparsecc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
USER 10001
WORKDIR /work
ENTRYPOINT ["sparsecc"]
CMD ["--help"]
