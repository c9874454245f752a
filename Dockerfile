# `tttstream live` on the embedded source: docker build -t tttstream . && docker run --rm -p 127.0.0.1:8230:8230 tttstream
# The page's address with its token is printed at the start. Arguments take the place of the default ones:
#   docker run --rm -p 127.0.0.1:8230:8230 --device /dev/video0 tttstream 0 --web 0.0.0.0:8230
FROM python:3.12-slim

# OpenCV's windows; Chromium and the like are not needed to serve the page.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tttstream tttstream
COPY kernels kernels
COPY agents agents
COPY configs configs
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt . \
    && useradd --create-home watcher
USER watcher
WORKDIR /home/watcher
EXPOSE 8230
STOPSIGNAL SIGINT
ENTRYPOINT ["tttstream", "live"]
CMD ["places", "--loop", "--web", "0.0.0.0:8230"]
