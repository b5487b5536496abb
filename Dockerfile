# A CPU:                          docker build -t ssljax .
# An NVIDIA GPU, driver 580 on:   docker build -t ssljax --build-arg EXTRAS=cuda,convert,export .
FROM python:3.11-slim
ARG EXTRAS=convert,export
WORKDIR /src
COPY setup.py pyproject.toml requirements.lock README.md LICENSE ./
COPY configs configs
COPY ssljax ssljax
RUN pip install --no-cache-dir --constraint requirements.lock ".[$EXTRAS]" && rm -rf /src
# Whoever runs it has no home here, and matplotlib keeps a cache there.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["ssljax"]
