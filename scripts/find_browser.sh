#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome: $CHROME, or the first one on PATH.
for name in "${CHROME:-}" chromium chromium-browser google-chrome google-chrome-stable chrome; do
    [ -n "$name" ] && command -v "$name" && exit 0
done
exit 1
