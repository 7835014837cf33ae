#!/bin/sh
# Builds the two runtimes into wasm/ (or into the folder given as first argument), compressed as
# Substrate expects them. Same sources and same toolchain give the same bytes, wherever this lies.
#
# Toolchain: Debian's, no rustup targets needed:
#   apt-get install rustc-web cargo-web rust-web-src lld zstd
# Time: about 4 minutes on two cores. CARGO_TARGET_DIR is respected; by default the build happens in
# a temporary folder that is removed again.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-"$here/wasm"}

rustc=${DEVNET_RUSTC:-/usr/bin/rustc}
cargo=${DEVNET_CARGO:-/usr/bin/cargo}
for tool in "$rustc" "$cargo" /usr/bin/wasm-ld /usr/bin/zstd; do
	if [ ! -x "$tool" ]; then
		echo "build.sh: $tool is missing. apt-get install rustc-web cargo-web rust-web-src lld zstd" >&2
		exit 69
	fi
done
sysroot=$("$rustc" --print sysroot)
if [ ! -f "$sysroot/lib/rustlib/src/rust/library/Cargo.lock" ]; then
	echo "build.sh: the sources of Rust's own library are missing. apt-get install rust-web-src" >&2
	exit 69
fi

if [ -z "${CARGO_TARGET_DIR:-}" ]; then
	CARGO_TARGET_DIR=$(mktemp -d)
	trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
fi
export CARGO_TARGET_DIR

export RUSTC="$rustc"
export RUSTC_BOOTSTRAP=1 # -Zbuild-std on a stable compiler
export CARGO_TARGET_WASM32V1_NONE_LINKER=/usr/bin/wasm-ld
"$cargo" fetch --locked --quiet --manifest-path "$here/Cargo.toml"
# Paths of this machine must not get into the wasm (panic messages hold file names).
registry=$(CDPATH='' cd -- "${CARGO_HOME:-$HOME/.cargo}/registry/src" && pwd)
remap="--remap-path-prefix $here=/runtime --remap-path-prefix $(readlink -f "$sysroot/lib/rustlib/src/rust")=/rust --remap-path-prefix $sysroot/lib/rustlib/src/rust=/rust"
for index in "$registry"/*; do
	remap="$remap --remap-path-prefix $index=/registry"
done
export RUSTFLAGS="-C link-arg=--export-table -C link-arg=--import-memory --cfg substrate_runtime -C target-cpu=mvp $remap"

build() { # build NAME FEATURES...
	name=$1
	shift
	"$cargo" rustc --locked --release --no-default-features "$@" --manifest-path "$here/Cargo.toml" \
		--target wasm32v1-none -Zbuild-std=core,alloc --lib --crate-type cdylib -- -C link-arg=--allow-undefined
	wasm="$CARGO_TARGET_DIR/wasm32v1-none/release/dcnode_runtime.wasm"
	# sp-maybe-compressed-blob: eight magic bytes, then zstd.
	printf '\122\274\123\166\106\333\216\005' >"$out/$name.compact.compressed.wasm.part"
	zstd --quiet -19 --single-thread --stdout "$wasm" >>"$out/$name.compact.compressed.wasm.part"
	mv "$out/$name.compact.compressed.wasm.part" "$out/$name.compact.compressed.wasm"
	# zstd's own output may differ between its versions: what is compared is the wasm inside.
	printf '%s  %s\n' "$(sha256sum "$wasm" | cut -d' ' -f1)" "$name.wasm" >>"$out/SHA256SUMS.part"
}

mkdir -p "$out"
rm -f "$out/SHA256SUMS.part"
build dcnode_runtime
build dcnode_runtime_moved --features moved
mv "$out/SHA256SUMS.part" "$out/SHA256SUMS"
# From what it was built: a test compares this without a toolchain.
(cd "$here" && LC_ALL=C sha256sum Cargo.lock Cargo.toml src/*.rs) >"$out/SOURCES"
cat "$out/SHA256SUMS"
