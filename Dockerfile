# syntax=docker/dockerfile:1

# The build: the compiler that Cargo.toml asks for, and make, on the Debian that the final image is made of (same C library).
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY src ./src
# Built in as the defaults.
COPY config ./config
COPY abi ./abi
# The cache mounts hold downloads and compiled dependencies from one build to the next; the binary is copied out of them
# in the same step, since they are no part of the image. The empty folder becomes the data volume's first content.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release --bin chaintap \
    && install -D target/release/chaintap /out/bin/chaintap \
    && mkdir /out/data

# What runs: the C library, certificates, no shell, not root.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="chaintap" \
      org.opencontainers.image.description="Listens to EVM chains and never loses an event: every tracked transfer, at least once, to a queue." \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=build /out/bin/chaintap /usr/local/bin/chaintap
COPY --from=build --chown=65532:65532 /out/data /var/lib/chaintap
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/chaintap/
WORKDIR /etc/chaintap
COPY config ./config
COPY abi ./abi

# Only the embedded store writes, and only here; with REDIS_URL the whole file system may be read-only.
ENV DATA_DIR=/var/lib/chaintap
VOLUME /var/lib/chaintap

USER 65532:65532
EXPOSE 3001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/chaintap", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/chaintap"]
CMD ["run"]
