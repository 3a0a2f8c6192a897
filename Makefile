.PHONY: test generate lint dev demo bench ci

SQLC = github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1
LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

test: ## all tests, on one shared throw-away PostgreSQL
	go run ./cmd/tes with-postgres -- go test ./...

generate: ## everything that is generated and checked in
	go run $(SQLC) generate
	.ci/schema > sql/schema.sql
	go run ./cmd/tes openapi > api/openapi.yaml
	go run ./cmd/tes asyncapi > api/asyncapi.yaml

lint:
	go run $(LINT) run ./...

dev demo bench:
	go run ./cmd/tes $@

ci:
	.ci/run
