# Reads src/ as a compiler does, from all.h on, each source as often as it is included, without comments and strings:
# awk -v check=CHECK -v src=FOLDER -f sources.awk. Prints what is wrong, one finding a line.
#   order   a hai_ name that is used where neither its file nor a source above defines it
#   limits  sources, functions, macros of code and lines that are too long
#   files   nothing is wrong: prints the sources in order, each once
# Definitions: functions, variables, types, struct tags, enumerators, macros. A prototype defines nothing. A name that
# a macro makes, HAI_ISA(load) or hai_load_##isa, defines all names that begin with hai_load_. A table, a macro with the
# parameter X, uses the names in its rows where it is expanded.

function report(file, line, what) {
  if (!((file, line, what) in reported)) print "src/" file ":" line ": " what
  reported[file, line, what] = 1
}

# Where a name was defined: the file, and the place in the order of all that is read.
function define(name) {
  if (name !~ /^(hai|HAI)_/ || (name, file) in defined_in) return
  defined_in[name, file] = 1
  if (!(name in defined_at)) defined_at[name] = place
}

function use(name) {
  n_uses++
  used_name[n_uses] = name
  used_file[n_uses] = file
  used_line[n_uses] = number
  used_place[n_uses] = place
}

function is_defined(name, from, at) {
  return ((name, from) in defined_in) || (name in defined_at && defined_at[name] < at)
}

function uses_of(code,    name, before) {
  while (match(code, /[A-Za-z_][A-Za-z0-9_]*/)) {
    name = substr(code, RSTART, RLENGTH)
    before = substr(code, 1, RSTART - 1)
    code = substr(code, RSTART + RLENGTH)
    if (name !~ /^(hai|HAI)_/ || before ~ /(\.|->) *$/) continue
    if (code ~ /^ *##/) define(name) # the beginning of a name
    else use(name)
  }
}

# The name that a declaration's text ends with: hai_x, or HAI_ISA(x), which is hai_x_.
function last_name(text) {
  sub(/ *$/, "", text)
  while (sub(/ *\[[^][]*\]$/, "", text)) {}
  if (match(text, /(hai|HAI)_[A-Za-z0-9_]+ *\( *[a-z0-9_]+ *\)$/)) {
    text = substr(text, RSTART)
    gsub(/^.*\( *| *\)$/, "", text)
    return "hai_" text "_"
  }
  return match(text, /[A-Za-z_][A-Za-z0-9_]*$/) ? substr(text, RSTART) : ""
}

# The text before the last pair of parentheses outside all others.
function before_parameters(text,    i, level, at, c) {
  for (i = 1; i <= length(text); i++) {
    c = substr(text, i, 1)
    if (c == "(" && level++ == 0) at = i
    if (c == ")") level--
  }
  return substr(text, 1, at - 1)
}

# A declaration outside functions, up to its semicolon or its brace.
function declaration(text, ending) {
  gsub(/__attribute__ *\(\([^)]*(\([^)]*\))?[^)]*\)\)/, " ", text)
  if (match(text, /(struct|union) +[A-Za-z0-9_]+ *$/) && ending == "{") define(last_name(text))
  else if (text ~ /^ *typedef/ && ending == ";") {
    if (match(text, /\( *\* *[A-Za-z0-9_]+ *\)/)) {
      text = substr(text, RSTART, RLENGTH)
      gsub(/[^A-Za-z0-9_]/, "", text)
      define(text)
    } else define(last_name(text))
  } else if (match(text, /=/)) define(last_name(substr(text, 1, RSTART - 1)))
  else if (text ~ /\(/ && ending == "{") {
    define(last_name(before_parameters(text)))
    return 1
  } else if (text !~ /\(/ && ending == ";") define(last_name(text)) # a variable, or what follows a struct's brace
  return 0
}

# Code outside the preprocessor, by braces: `depth` of them are open.
function code_line(code,    i, c) {
  uses_of(code)
  for (i = 1; i <= length(code); i++) {
    c = substr(code, i, 1)
    if (depth == 0 && text == "" && c !~ /[ ;]/) begins = number
    if (c == "{") {
      if (text ~ /(^|[^A-Za-z0-9_])enum( +[A-Za-z0-9_]+)? *$/) enum = depth + 1
      if (depth == 0) in_function = declaration(text, "{")
      depth++
      text = ""
    } else if (c == "}") {
      if (enum == depth) enumerator()
      enum = 0
      depth--
      text = depth == 0 && !in_function ? "typedef " : ""
      if (depth == 0 && in_function && number - begins >= 60)
        long_one(begins, "a function of " number - begins + 1 " lines: 60 at most")
      if (depth < 0) report(file, number, "a brace too many")
    } else if (enum && c == ",") enumerator()
    else if (c == ";") {
      if (depth == 0 && text != "typedef ") declaration(text, ";")
      text = ""
    } else text = text c
  }
  text = text " "
  if (text ~ /^ +$/) text = ""
}

function enumerator(    name) {
  name = text
  sub(/=.*/, "", name)
  define(last_name(name))
  text = ""
}

function long_one(line, what) {
  if (check == "limits") report(file, line, what)
}

# A line of the preprocessor with those that continue it; `lines` is how many.
function directive(code, lines,    name) {
  if (match(code, /^ *# *define +[A-Za-z0-9_]+/)) {
    is_table = code ~ /^ *# *define +[A-Za-z0-9_]+\(X\)/
    name = substr(code, RSTART, RLENGTH)
    code = substr(code, RSTART + RLENGTH)
    sub(/.* /, "", name)
    define(name)
    if (is_table) return
    if (lines > 5 && code ~ /static|HAI_(INLINE|HOT|APART|TARGET)/ && code ~ /\{/)
      long_one(number, "the macro " name " defines a function in " lines " lines: 5 at most")
    else if (lines > 6 && code ~ /[;{]/) # a list or a number may be long
      long_one(number, "the macro " name " has " lines " lines of code: 6 at most")
  } else if (code ~ /^ *# *if/) {
    conditionals++
    depth_before[conditionals] = depth
    text_before[conditionals] = text
  } else if (code ~ /^ *# *el/) {
    depth = depth_before[conditionals] # each branch begins where the first does
    text = text_before[conditionals]
  } else if (code ~ /^ *# *endif/) conditionals--
  uses_of(code)
}

# Reads a source and what it includes.
function read(name,    path, raw, code, lines, joined, commented, at, outer, opened, count) {
  path = src "/" name
  outer = file
  file = name
  opened = conditionals
  place++
  if (!(name in seen) && check == "files") print name
  seen[name] = 1
  while ((getline raw < path) > 0) {
    count++
    sub(/\r$/, "", raw)
    if (length(raw) > 110) long_one(count, "a line of " length(raw) " columns: 110 at most")
    code = raw
    if (!commented) { # strings first, since they may hold comments' beginnings, unless a comment stands before them
      if (match(code, /^ *#include "[a-z0-9_]+\.h"/)) {
        gsub(/^ *#include "|".*/, "", code)
        read(code)
        file = name
        place++
        continue
      }
      at = index(code, "/*")
      if (!at || index(code, "\"") < at) gsub(/"([^"\\]|\\.)*"|'([^'\\]|\\.)*'/, "0", code)
    }
    while (commented || index(code, "/*")) {
      if (!commented) {
        at = index(code, "/*")
        commented = 1
        joined_before = substr(code, 1, at - 1)
        code = substr(code, at + 2)
      } else joined_before = ""
      at = index(code, "*/")
      if (!at) {
        code = joined_before
        break
      }
      commented = 0
      code = joined_before " " substr(code, at + 2)
    }
    gsub(/"([^"\\]|\\.)*"|'([^'\\]|\\.)*'/, "0", code)
    sub(/\/\/.*/, "", code)
    number = count - lines
    if (code ~ /\\ *$/ && (lines || code ~ /^ *#/)) {
      sub(/\\ *$/, " ", code)
      joined = joined code
      lines++
      continue
    }
    if (lines || code ~ /^ *#/) directive(joined code, lines + 1)
    else code_line(code)
    joined = ""
    lines = 0
  }
  close(path)
  if (count > 600) long_one(count, "a source of " count " lines: 600 at most")
  if (!count) report(outer, 1, "there is no src/" name)
  if (conditionals != opened) report(file, count, "a conditional that begins or ends in another file")
  if (depth && !outer) report(file, count, "a brace that is not closed")
  file = outer
}

BEGIN {
  read("all.h")
  if (check != "order") exit
  for (i = 1; i <= n_uses; i++) {
    name = used_name[i]
    if (is_defined(name, used_file[i], used_place[i])) continue
    for (prefix = name; sub(/[^_]+_?$/, "", prefix) && prefix != "hai_" && prefix != "HAI_" && prefix != "";) {
      if (is_defined(prefix, used_file[i], used_place[i])) break
    }
    if (prefix != "hai_" && prefix != "HAI_" && prefix != "") continue
    report(used_file[i], used_line[i], name (name in defined_at ? " is defined below" : " is defined nowhere"))
  }
}
