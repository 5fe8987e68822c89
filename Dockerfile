# syntax=docker/dockerfile:1
# docker build -t callsign:0.2.0 .
# docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/callsign:0.2.0 --push .

# Pin the base image by digest in a release: --build-arg RUST=rust:1.95-bookworm@sha256:…
ARG RUST=rust:1.95-bookworm
# Each platform builds for itself: a static binary needs no cross toolchain then.
FROM ${RUST} AS build
WORKDIR /src
# A static binary runs in an empty image. Packed relocations save half a megabyte, on disk and in memory.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
# The allocator's C code names when it was built.
ENV SOURCE_DATE_EPOCH=0
# Dependencies have a layer of their own, which a change of the source does not rebuild.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
 && cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')"
COPY src src
COPY docs docs
RUN touch src/lib.rs src/main.rs \
 && cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')" \
 && cp target/*/release/callsign /callsign

FROM scratch
ARG VERSION=0.2.0
ARG REVISION=
LABEL org.opencontainers.image.title="callsign" \
      org.opencontainers.image.description="In-cluster DNS that answers from the Kubernetes API" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /callsign /callsign
USER 65532:65532
EXPOSE 53/udp 53/tcp 8080/tcp 9153/tcp
ENTRYPOINT ["/callsign"]
CMD ["serve"]
