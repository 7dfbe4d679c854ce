# curvact on a CPU: docker build -t curvact . ; docker run --rm -v "$PWD/runs:/work/runs" curvact sweep run demo
FROM python:3.11-slim
# The activations' kernels for the CPU are compiled when they are first used.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt .
WORKDIR /work
ENTRYPOINT ["curvact"]
