"""The traffic of a chip's main memory is read off a schedule; the bytes were added by hand."""

import pytest

from fct_jax.compiling.traffic import main_memory_bytes

# 1,024 float32 are 4,096 bytes; S(1) is the fast memory.
MAIN, FAST, ROW = "f32[1024]{0:T(1024)}", "f32[1024]{0:T(1024)S(1)}", "f32[8]{0}"
TABLE = "f32[128,8]{1,0}"  # 4,096 bytes, too
LINES = {
    "both in main memory": (f"%r = {MAIN} negate(%main)", 2 * 4096),
    "result in fast memory": (f"%r = {FAST} negate(%main)", 4096),
    "all in fast memory": (f"%r = {FAST} negate(%fast)", 0),
    "fetched": (f"%r = ({FAST}, {MAIN}, u32[]{{:S(2)}}) copy-start(%main)", 4096),
    "fetched in part": (
        "%r = ((f32[1024]{0:T(1024)}), f32[256]{0:T(256)S(1)}, s32[]{:S(2)}) slice-start(%main), "
        "slice={[0:256]}",
        1024,
    ),
    "waited for": (f"%r = {FAST} copy-done(%pair)", 0),
    "renamed": (f"%r = {MAIN} bitcast(%main)", 0),
    "a row of a table": (f"%r = {ROW} gather(%table, %row), slice_sizes={{1,8}}", 2 * 32),
    "a fusion": (f"%r = {MAIN} fusion(%main, %fast), kind=kLoop, calls=%whole", 2 * 4096),
    "a fusion that takes a row": (
        f"%r = {ROW} fusion(%table, %row), kind=kLoop, calls=%taking",
        32 + 32 + 32,
    ),
    "a fusion that changes a row in place": (
        f"%r = {TABLE} fusion(%table, %row), kind=kLoop, calls=%changing",
        32 + 32,
    ),
    "gradients": (f"%r = {MAIN} all-reduce(%main), channel_id=1, to_apply=%add", 2 * 4096),
}


def program(*lines: str) -> str:
    return "\n".join(
        [
            "HloModule m, is_scheduled=true",
            "%whole (a: f32[1024], b: f32[1024]) -> f32[1024] {",
            f"  %a = {MAIN} parameter(0)",
            f"  %b = {MAIN} parameter(1)",
            f"  ROOT %sum = {MAIN} add(%a, %b)",
            "}",
            "%taking (a: f32[128,8], b: f32[8]) -> f32[8] {",
            f"  %a = {TABLE} parameter(0)",
            f"  %b = {ROW} parameter(1)",
            f"  %same = {TABLE} bitcast(%a)",
            f"  %one = {ROW} dynamic-slice(%same, %b), dynamic_slice_sizes={{1,8}}",
            f"  ROOT %sum = {ROW} add(%one, %b)",
            "}",
            "%changing (a: f32[128,8], b: f32[8]) -> f32[128,8] {",
            f"  %a = {TABLE} parameter(0)",
            f"  %b = {ROW} parameter(1)",
            f"  ROOT %put = {TABLE} dynamic-update-slice(%a, %b, %zero)",
            "}",
            "%body (a: f32[1024]) -> f32[1024] {",
            f"  %a = {MAIN} parameter(0)",
            f"  ROOT %n = {FAST} negate(%a)",
            "}",
            "ENTRY %main_spmd (main: f32[1024]) -> f32[1024] {",
            f"  %main = {MAIN} parameter(0)",
            f"  %fast = {FAST} parameter(1)",
            f"  %table = {TABLE} parameter(2)",
            f"  %row = {ROW} parameter(3)",
            *(f"  {line}" for line in lines),
            "}",
        ]
    )


@pytest.mark.parametrize("name", LINES)
def test_one_instruction(name):
    line, expected = LINES[name]
    assert main_memory_bytes(program(line)) == expected


def test_a_loop_counts_its_turns():
    line = f"%r = {MAIN} while(%main), condition=%none, body=%body"
    text = program(line, LINES["fetched"][0])
    assert main_memory_bytes(text) == 4096 + 4096
    assert main_memory_bytes(text, [16]) == 16 * 4096 + 4096
