"""Writes unicode.h: python3 examples/llm/unicode_table.py > examples/llm/unicode.h

Ranges of code points that are letters, numbers or white space (\\p{L}, \\p{N}, \\s), from Python's Unicode database.
"""

import sys
import unicodedata

SPACES = set("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}


def kind(code: int) -> str:
    if chr(code) in SPACES:
        return "SPACE"
    return {"L": "LETTER", "N": "NUMBER"}.get(unicodedata.category(chr(code))[0], "")


def ranges() -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    for code in range(sys.maxunicode + 1):
        this = kind(code)
        if found and found[-1][2] == this and found[-1][1] == code - 1:
            found[-1] = (found[-1][0], code, this)
        elif this:
            found.append((code, code, this))
    return found


def main() -> None:
    print(f"// Unicode {unicodedata.unidata_version}: letters (L), numbers (N), white space (S). Made by unicode_table.py.")
    print("// clang-format off")
    print("static const struct { uint32_t first, last; char kind; } unicode_ranges[] = {")
    line = ""
    for entry in [f"{{0x{first:x},0x{last:x},'{name[0]}'}}," for first, last, name in ranges()]:
        if len(line) + len(entry) > 106:
            print(line)
            line = ""
        line += entry
    print(line)
    print("};")
    print("// clang-format on")


if __name__ == "__main__":
    main()
