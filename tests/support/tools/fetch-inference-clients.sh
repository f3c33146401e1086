#!/usr/bin/env bash
# Gets the programs that Triton and KServe users have, for the tests in tests/oip, into a folder. Needs no root.
#
#   tests/support/tools/fetch-inference-clients.sh UV FOLDER
#
#   FOLDER/kserve         a virtual environment with KServe's client, whose requirements do not fit ours
#   FOLDER/perf_analyzer  Triton's load generator, from the last wheels that brought it, and the libraries it links to
#   FOLDER/go/bin         grpcurl and grpc-health-probe, built where there is Go
#
# Does nothing for what is there already. What cannot be had here it says, and its tests say so too.
set -euo pipefail
uv=$(realpath "$1")
mkdir -p "$2"
folder=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

if [ ! -e "$folder/kserve/.complete" ]; then
	rm -rf "$folder/kserve"
	"$uv" venv --quiet --python "$(dirname "$uv")/python" "$folder/kserve"
	"$uv" pip install --quiet --python "$folder/kserve/bin/python" kserve==0.21.0
	touch "$folder/kserve/.complete"
fi

if [ ! -e "$folder/perf_analyzer/.complete" ]; then
	if [ "$(uname -sm)" = "Linux x86_64" ]; then
		rm -rf "$folder/perf_analyzer"
		"$uv" pip install --quiet --python "$(dirname "$uv")/python" --no-deps --target "$folder/perf_analyzer" \
			tritonclient==2.46.0 nvidia-cuda-runtime-cu12==12.9.79
		"$here/fetch-debian.sh" libb64-0d "$folder/perf_analyzer/debian"
		touch "$folder/perf_analyzer/.complete"
	else
		echo "fetch-inference-clients.sh: perf_analyzer is for Linux on x86-64 alone, its tests are skipped" >&2
	fi
fi

build() { # MODULE VERSION PROGRAM [PATH]
	if [ -x "$folder/go/bin/$3" ] || command -v "$3" >/dev/null; then
		return
	fi
	if command -v go >/dev/null; then
		(cd "$folder" && GOBIN="$folder/go/bin" go install "$1${4:-}@$2")
	else
		echo "fetch-inference-clients.sh: no Go here to build $3 with, its tests are skipped" >&2
	fi
}
build github.com/fullstorydev/grpcurl v1.9.4 grpcurl /cmd/grpcurl
build github.com/grpc-ecosystem/grpc-health-probe v0.4.61 grpc-health-probe
