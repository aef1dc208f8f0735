# Segwright in a container: see docs/how-to/container.md.
#   docker build --target runtime -t segwright .
#   docker build --target baked --build-arg MODEL=Liver.zip --build-arg SHA256=... -t segwright-liver .

FROM python:3.12-slim-bookworm AS build
# cpu, or cuda for the wheels of torch that bring CUDA
ARG COMPUTE=cpu
ARG EXTRAS=dicom,onnx,serve,hub
# GCC 12 of bookworm compiles all CPU kernels; earlier ones lack half precision
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
RUN case "$COMPUTE" in \
      cpu) index=https://download.pytorch.org/whl/cpu ;; \
      cuda) index=https://pypi.org/simple ;; \
      *) echo "COMPUTE=$COMPUTE: expected cpu or cuda" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --constraint constraints.txt --index-url "$index" torch
COPY pyproject.toml README.md LICENSE hatch_build.py build_kernels.py ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.12-slim-bookworm AS runtime
RUN useradd --create-home --uid 1000 segwright \
    && install -d -o segwright -g segwright /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
USER segwright
WORKDIR /data
ENTRYPOINT ["segwright"]
CMD ["--help"]

FROM runtime AS baked
# a pack in the build context, and its hash as 'segwright pack' printed it
ARG MODEL
ARG SHA256
COPY --chown=segwright:segwright ${MODEL} /tmp/model.zip
RUN segwright --work /home/segwright/work install /tmp/model.zip --name model ${SHA256:+--sha256 "$SHA256"} \
    && rm /tmp/model.zip
ENTRYPOINT ["segwright", "--work", "/home/segwright/work"]
CMD ["info", "model"]
