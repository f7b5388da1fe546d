#!/bin/sh
# Loads mmserve with ghz (github.com/bojand/ghz v0.121.0), for those who know it. It needs no .proto file: mmserve's
# reflection is on. What ghz calls latency is E2E of `mmserve bench`, from when a call was sent; it has no TTFT.
#
#   deploy/loadtest/ghz.sh [host:port] [requests/s] [requests]
#
# The prompt begins with the request's number, so that no request starts from the cached prefix of another.
set -eu
addr=${1:-127.0.0.1:8080} rate=${2:-10} n=${3:-200}
ghz=${GHZ:-"go run github.com/bojand/ghz/cmd/ghz@v0.121.0"}
exec $ghz --insecure --call mmserve.v1.InferenceService.GenerateStream --rps "$rate" --total "$n" --concurrency "$n" --async --timeout 60s \
	--data '{"request_id": "ghz-{{.UUID}}", "max_tokens": 50, "ignore_eos": true, "chat": {"messages": [{"role": "ROLE_USER", "parts": [
		{"text": "{{.RequestNumber}} the file is in name of and with return code this that from when list data new time line text the file is in name of and with return code this that from when list data new time line"}]}]}}' \
	"$addr"
