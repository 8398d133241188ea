#!/usr/bin/env bash
# The programs the tests drive: a browser, a speech synthesiser, recorded speech, media tools, npm to fetch a player.
# Installed where that needs no question (root, or sudo without a password); otherwise named with the command to run.
set -euo pipefail

declare -A program=(
  [chromium]="chromium" [espeak-ng]="espeak-ng" [sox]="sox" [ffmpeg]="ffmpeg" [npm]="npm"
)
missing=()
for package in "${!program[@]}"; do
  command -v "${program[$package]}" >/dev/null 2>&1 || missing+=("$package")
done
# Three packages bring files instead of programs. `ldconfig` may be outside an ordinary user's PATH.
PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null | grep 'libespeak-ng\.so\.1' >/dev/null || missing+=(libespeak-ng1)
ls /usr/share/pocketsphinx/test/data/librivox/*.wav >/dev/null 2>&1 || missing+=(pocketsphinx-testdata)
# GStreamer as a WHIP client: its bindings belong to the system's Python, its elements to five packages.
if ! /usr/bin/python3 -c 'import gi; gi.require_version("GstWebRTC", "1.0"); from gi.repository import Gst; Gst.init(None)
raise SystemExit(not all(map(Gst.ElementFactory.find, ["webrtcbin", "nicesrc", "opusenc", "wavparse", "rtpopuspay"])))' \
  >/dev/null 2>&1; then
  missing+=(gir1.2-gst-plugins-bad-1.0 gstreamer1.0-nice gstreamer1.0-plugins-bad gstreamer1.0-plugins-base
    gstreamer1.0-plugins-good python3-gi)
fi

ls /usr/lib/nginx/modules/ngx_rtmp_module.so >/dev/null 2>&1 || missing+=(libnginx-mod-rtmp)

[ ${#missing[@]} -eq 0 ] && exit 0
install="apt-get install -y --no-install-recommends ${missing[*]}"

if ! command -v apt-get >/dev/null 2>&1; then
  echo "The tests need these programs: ${missing[*]}. Install them with this system's package manager and run make again." >&2
  exit 2
elif [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo)
else
  echo "The tests need these packages: ${missing[*]}. Run: sudo apt-get update && sudo $install" >&2
  exit 2
fi
echo "Installing for the tests: ${missing[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $install >/dev/null
