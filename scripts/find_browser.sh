#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome: $CHROME, or the first one on PATH. Where there is none, says what to do.
for name in "${CHROME:-}" chromium chromium-browser google-chrome google-chrome-stable chrome; do
    [ -n "$name" ] && command -v "$name" && exit 0
done
echo "error: no Chromium is found, which draws the stills of charts and prints the report's PDF; type: apt-get install chromium" \
    "(or name a browser: CHROME=/path/to/chrome make report)" >&2
exit 1
