"""Hostile words: what a model, a data set or somebody else's run directory may try to say to a terminal, a browser, Markdown or YAML."""

from __future__ import annotations

HTML = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</script></style></textarea></title><b>bold",
    "<!-- ",
    "]]>",
    "&lt;script&gt;",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<iframe srcdoc='<script>1</script>'>",
]
MARKDOWN = [
    "`code` ``more``",
    "a | b | c",
    "[link](http://evil.example/x)",
    "![image](http://evil.example/x.png)",
    "# heading\n\n## more",
    "```\nfence\n```",
    "~~~\nfence",
    "| a |\n|---|\n| b |",
    "<http://evil.example>",
    "\\`escaped\\`",
]
YAML = [
    "---\nlicense: evil\n---",
    "key: value # comment",
    "!!python/object/apply:os.system [ls]",
    "*alias",
    "&anchor [1",
    "'\"",
    "- a\n- b",
    "null",
    "... end",
]
TERMINAL = [
    "\x1b[2J\x1b[H wiped",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x9b31m red",
    "\r overwritten",
    "\b\b\b\b",
    "\x00\x07",
    "[red]rich markup[/red]",
]
BIDI = ["\u202eneddih", "\u2066isolated\u2069", "\u200fright", "\ufeffmark", "a\u2028b\u2029c", "\u061cletter"]
ALL = [*HTML, *MARKDOWN, *YAML, *TERMINAL, *BIDI]

UNSEEN = set("\x1b\x9b\x07\x00\x08\u202e\u2066\u2069\u200f\u061c\u2028\u2029\ufeff")


def as_name(text: str) -> str:
    """The text as a name of a file: no slash, no NUL, 100 bytes at most."""
    return text.replace("/", "_").replace("\x00", "_").encode()[:100].decode(errors="ignore").strip(". ") or "x"
