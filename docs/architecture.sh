#!/bin/sh
# Draws docs/architecture.svg: sh docs/architecture.sh [FILE]. The files in each box, and their order, are those of the
# table in docs/architecture.md; tests/sources.sh holds that table to src/all.h, and the picture to this script.
set -eu
docs=$(cd "$(dirname "$0")" && pwd)
awk '
# The boxes from top to bottom: part | column | title | what it does | what it hands to the box below.
function parts() {
  part("interface", "left", "Interface", "what is asked for, and what each field means", "problem, params")
  part("plan", "left", "Plan", "parameters made definite; regions: rectangles and segments", "plan")
  part("workspace", "right", "Workspace", "where each array lies, for each head and region", "")
  part("phases", "left", "Phases", "stages at levels, cut into tasks for any workers", "job: head, region, chunk")
  part("selection", "left", "Selection", "which keys a query meets, and with which log-weight", \
       "orders, pairings, pins, columns")
  part("judging", "right", "Judging", "held-out queries choose a recipe, and report", "")
  part("attention", "left", "Attention", "brings each tile of queries its keys, by chunks", \
       "rows of keys, log-weights, who sees them")
  part("scan", "right", "Scan", "every score estimated; each query its own keys and error", "")
  part("tiles", "left", "Tiles", "queries in the lanes, a chunk of keys, the running state", "state (m, l, o)")
  part("kernels", "right", "Kernels", "scores, softmax and values of a tile, for each ISA", "")
  part("output", "left", "Output", "out = o / l,  lse = m + ln l", "")
  part("basics", "wide", "Basics", "compilers, numbers, dtypes, random numbers: used by all above", "")
}
function part(name, column, title, does, hands) {
  n++
  of[name] = n; columns[n] = column; titles[n] = title; notes[n] = does; arrows[n] = hands
}
function text(x, y, class, what) {
  gsub(/&/, "\\&amp;", what); gsub(/</, "\\&lt;", what)
  printf "<text x=\"%d\" y=\"%d\" class=\"%s\">%s</text>\n", x, y, class, what
}
function line(x1, y1, x2, y2, marks) {
  printf "<path d=\"M%d %dL%d %d\"%s/>\n", x1, y1, x2, y2, marks
}
function box(i, x, y, width, height,    k, words, m, row) {
  printf "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\" class=\"%s\"/>\n", x, y, width, height, columns[i]
  text(x + 12, y + 21, "title", titles[i])
  text(x + 12, y + 39, "note", notes[i])
  m = split(rows_of(i, width), words, "\n")
  for (k = 1; k <= m; k++) text(x + 12, y + 41 + 17 * k, "file", words[k])
}
# The names of the files of a box, in lines that fit.
function rows_of(i, width,    k, m, names, row, all) {
  m = split(files[i], names, " ")
  for (k = 1; k <= m; k++) {
    if (row != "" && length(row " " names[k]) * 7.3 > width - 24) {
      all = all row "\n"
      row = ""
    }
    row = row (row == "" ? "" : " ") names[k]
  }
  return all row
}
function height_of(i, width,    lines) {
  if (files[i] == "") return 50
  return 50 + 17 * split(rows_of(i, width), lines, "\n")
}
BEGIN { parts() }
/^\| `[a-z0-9_]*\.h` \|/ {
  split($0, cells, /\| */)
  name = cells[2]; what = cells[3]
  gsub(/[` ]/, "", name); gsub(/ *$/, "", what)
  if (!(what in of)) { print "architecture.sh: no part " what " for " name | "cat >&2"; failed = 1; exit 1 }
  files[of[what]] = files[of[what]] (files[of[what]] == "" ? "" : " ") name
}
END {
  if (failed) exit 1
  left = 20; wide = 500; right = 580; narrow = 400; gap = 34
  y = 20
  for (i = 1; i <= n; i++) { # a box in the right column stands beside the one before it
    if (columns[i] == "right") continue
    tall[i] = height_of(i, columns[i] == "left" ? wide : right + narrow - left)
    top[i] = y
    if (columns[i + 1] == "right") {
      top[i + 1] = y
      tall[i + 1] = height_of(i + 1, narrow)
      if (tall[i + 1] > tall[i]) tall[i] = tall[i + 1]
      tall[i + 1] = tall[i]
    }
    y += tall[i] + gap
  }
  printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\">\n", \
         right + narrow + 20, y - gap + 20
  print "<style>rect{stroke:#456;fill:#eef3f8}rect.right{fill:#f4f0e6}rect.wide{fill:#f2f2f2}path{stroke:#456;" \
        "stroke-width:1.5;fill:none}text{font-size:13px;fill:#222}.title{font-weight:bold;font-size:15px}" \
        ".file{font-family:monospace;font-size:12px}.note{fill:#444}.arrow{font-style:italic;fill:#345}</style>"
  print "<defs><marker id=\"a\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" " \
        "orient=\"auto-start-reverse\"><path d=\"M0 0L8 4L0 8z\" style=\"fill:#456\"/></marker></defs>"
  printf "<rect width=\"%d\" height=\"%d\" style=\"fill:#fff;stroke:none\"/>\n", right + narrow + 20, y - gap + 20
  end = " marker-end=\"url(#a)\""
  for (i = 1; i <= n; i++) {
    if (columns[i] == "right") {
      box(i, right, top[i], narrow, tall[i])
      line(left + wide, top[i] + 25, right, top[i] + 25, end " marker-start=\"url(#a)\"")
    } else box(i, left, top[i], columns[i] == "left" ? wide : right + narrow - left, tall[i])
    if (arrows[i] != "") {
      line(left + 60, top[i] + tall[i], left + 60, top[i] + tall[i] + gap, end)
      text(left + 76, top[i] + tall[i] + gap / 2 + 5, "arrow", arrows[i])
    }
  }
  print "</svg>"
}' "$docs/architecture.md" >"${1:-$docs/architecture.svg}"
