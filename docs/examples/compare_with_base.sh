#!/usr/bin/env bash
# Write the comment for a pull request: the verdict of the finished run in this folder, and how the run differs from
# the one in another revision. Run it in the folder of the pipeline, after `dvc repro`:
#
#     cd demo && bash ../docs/examples/compare_with_base.sh origin/main comment.md
set -euo pipefail

if [ $# != 2 ]; then
  echo "usage: compare_with_base.sh BASE FILE" >&2
  exit 2
fi
base=$1 file=$2

fail() {
  echo "error: $1" >&2
  exit 1
}

[ -f dvc.yaml ] || fail "dvc.yaml: not in this folder; run this script in the folder of the pipeline"
[ -f metrics/report.md ] || fail "metrics/report.md: no such file; run \`dvc repro\` first"
git rev-parse --verify --quiet "$base^{commit}" >/dev/null ||
  fail "$base: no such Git revision here; fetch it (actions/checkout: fetch-depth: 0)"

temporary=$(mktemp -d)
trap 'rm -r "$temporary"' EXIT
{
  sed '/^- /,$d; s/^# /## /' metrics/report.md # to the list of facts
  if ! git cat-file -e "$base:./metrics/summary.json" 2>/dev/null; then
    printf 'In `%s` this folder has no `metrics/summary.json`, so there is nothing to compare this run with.\n' "$base"
  else
    printf '### Metrics: `%s` and this change\n\n' "$base"
    differences=$(dvc metrics diff "$base" --md)
    # Without differences, DVC prints nothing, or a table with its heading only.
    [ "$(grep -c '^|' <<<"$differences")" -gt 2 ] || differences='No metric differs.'
    printf '%s\n\n' "$differences"
    printf '### Is the difference significant?\n\n'
    # If the change selects other test rows, the runs are not comparable. Then the comment says so.
    if ! python -m tools.compare "$base" workspace 2>"$temporary/log"; then
      grep '^error: ' "$temporary/log" || fail "tools.compare: $(tail -1 "$temporary/log")"
    fi
  fi
} >"$temporary/comment.md"
mv "$temporary/comment.md" "$file"
