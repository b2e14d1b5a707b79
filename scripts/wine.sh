#!/usr/bin/env bash
# Runs Windows programs of this repository under Wine, above all its tests:
#
#   scripts/wine.sh cargo test --target x86_64-pc-windows-gnu -p ringport-engine --test conformance
#   scripts/wine.sh cargo nextest run --target x86_64-pc-windows-gnu -p ringport-engine
#   scripts/wine.sh wine target/x86_64-pc-windows-gnu/debug/ringport.exe engines
#
# What is missing it installs (Debian's packages, as root, and Rust's target). The Windows installation that Wine needs
# lies in target/wine, is made at the first run and belongs to nothing else. Any command works; cargo gets this script as
# the runner of Windows programs. A program that runs longer than RINGPORT_WINE_SECONDS (600) is ended: under Wine a
# stack overflow, for one, is no end but a process that hangs. With --install instead of a command it installs the packages.
#
# What holds here: the functions. Wine says nothing about the speed of Windows.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=x86_64-pc-windows-gnu
packages=(wine wine64 gcc-mingw-w64-x86-64)
seconds=${RINGPORT_WINE_SECONDS:-600}

# As cargo's runner: one program, with its time.
if [ "${1:-}" = --run ]; then
    shift
    exec timeout --kill-after=5 "$seconds" wine "$@"
fi
[ $# -gt 0 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

prefix=${CARGO_TARGET_DIR:-$(dirname "$here")/target}/wine
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
export WINEPREFIX=$prefix WINEDEBUG=${WINEDEBUG:--all}
# No .NET, no browser engine, no entries in anybody's menus.
export WINEDLLOVERRIDES="mscoree,mshtml=;winemenubuilder.exe=d"
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER="$here/wine.sh --run"
unset DISPLAY WAYLAND_DISPLAY

install_packages() {
    local program
    for program in wine wineserver x86_64-w64-mingw32-gcc; do
        command -v "$program" > /dev/null && continue
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${packages[@]}"
        break
    done
}

add_target() {
    rustup target list --installed | grep --quiet --line-regexp "$target" || rustup target add "$target"
}

# One at a time: several runs share the prefix.
make_prefix() {
    local library=$prefix/drive_c/windows/system32/bcryptprimitives.dll
    [ -e "$library" ] && return
    timeout 300 wine wineboot --init < /dev/null > /dev/null 2>&1 || true
    timeout 60 wineserver --wait || true
    [ -d "$(dirname "$library")" ] || { echo "wine.sh: wineboot made no Windows installation in $prefix" >&2; return 1; }
    # A later Wine brings its own.
    [ -e "$library" ] || x86_64-w64-mingw32-gcc -O2 -Wall -shared -o "$library" "$here/wine/random.c" -ladvapi32
}

# Without Wine's services the first of many programs would start them, and whoever waits for its output would wait for
# theirs. They stay until the last run on this prefix has ended. What a run that was killed left behind goes first.
warm_up() {
    timeout 60 wineserver --kill --wait || true
    timeout 60 wineserver --persistent
    timeout 120 wine wineboot < /dev/null > /dev/null 2>&1
}

exec 8> "$prefix.preparing" 9> "$prefix.users"
# Programs that stay must not keep the locks: they get neither 8 nor 9.
flock 8
install_packages >&2 8>&- 9>&-
[ "$1" = --install ] && exit
add_target >&2
make_prefix 8>&- 9>&-
# Whoever can have it alone is the first.
if flock --exclusive --nonblock 9; then
    warm_up 8>&- 9>&-
fi
flock --shared 9
flock --unlock 8
trap 'flock --exclusive --nonblock 9 && wineserver --kill 8>&- 9>&-' EXIT
"$@" 8>&- 9>&-
