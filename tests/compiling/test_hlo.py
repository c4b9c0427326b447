"""Compiled programs are read as they are written."""

from fct_jax.compiling import hlo

TEXT = """
HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (a: bf16[64,512]) -> f32[512] {
  %a = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  %copy.1 = bf16[64,512]{0,1:T(8,128)(2,1)} copy(%a), metadata={op_name="jit(f)/transpose"}
  %small = f32[4]{0} copy(%b)
  %start = f32[512]{0} all-reduce-start(%c), replica_groups={}, to_apply=%add, \
metadata={op_name="jit(f)/bn/reduce_sum" stack_frame_id=3}
  %done = f32[512]{0} all-reduce-done(%start)
  %pair = (f32[64]{0}, f32[64]{0}) all-reduce(%d, %e), to_apply=%add
  %first = (f32[256]{0}, f32[1024]{0}) all-gather-start(%g), dimensions={0}
  %sent = (f32[25,32]{0,1:T(8,128)S(1)}, f32[25,32]{0,1:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%h), source_target_pairs={}
  ROOT %gathered = pred[3,5]{1,0} all-gather(%f), dimensions={0}
}
"""


def test_collectives():
    found = hlo.collectives(TEXT)
    assert [(each.kind, each.size) for each in found] == [
        ("all-reduce", 512 * 4),
        ("all-reduce", 2 * 64 * 4),
        ("all-gather", 1024 * 4),
        ("collective-permute", 25 * 32 * 4),
        ("all-gather", 15),
    ]
    assert found[0].source == "jit(f)/bn/reduce_sum"
    assert hlo.by_kind(found) == {
        "all-reduce": (2, 512 * 4 + 512),
        "all-gather": (2, 1024 * 4 + 15),
        "collective-permute": (1, 25 * 32 * 4),
    }


def test_copies():
    (found,) = hlo.copies(TEXT, 1000)
    assert found == hlo.Instruction("copy", 64 * 512 * 2, "jit(f)/transpose")
    assert len(hlo.copies(TEXT, 0)) == 2
