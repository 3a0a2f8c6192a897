# The service as one static binary in an empty image: no shell, no package manager,
# not root. It listens on 8080; ask /livez and /readyz from outside, or "/tes healthcheck"
# inside.
#
#   docker build -t tes:local .
#
# The whole checkout goes in, .git too: the version that tes prints is read from it.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/tes ./cmd/tes \
    && echo 'tes:x:65532:65532:tes:/:/sbin/nologin' > /out/passwd \
    && echo 'tes:x:65532:' > /out/group

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/passwd /out/group /etc/
COPY --from=build /out/tes /tes
USER 65532:65532
ENV TES_HTTP=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/tes"]
CMD ["serve"]
