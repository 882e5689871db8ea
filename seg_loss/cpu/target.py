"""The processor that the kernels are compiled for, found out with llvmlite alone.

Numba compiles for the host unless NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another processor. A
kernel exists in several forms, for processors with and without some instructions. Which ones there
are shows in the assembly of a few lines, also where only a name such as "x86-64-v3" is given.
"""

import functools
import os
from typing import NamedTuple

import llvmlite.binding as llvm


class Target(NamedTuple):
    """The processor.

    Attributes:
        triple, cpu, features: as LLVM names them.
        has_avx512: whether it has vectors of 64 bytes and the instructions of AVX512DQ.
        has_fma: whether a * b + c takes one instruction.
        has_half: whether it converts float16.
    """

    triple: str
    cpu: str
    features: str
    has_avx512: bool
    has_fma: bool
    has_half: bool


_PROBE = """
target triple = "{triple}"
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define <16 x float> @fma(<16 x float> %a, <16 x float> %b, <16 x float> %c) {{
  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %c)
  ret <16 x float> %r
}}
define <16 x float> @half(<16 x half> %a) {{
  %r = fpext <16 x half> %a to <16 x float>
  ret <16 x float> %r
}}
define <8 x i64> @integers(<8 x double> %a) {{
  %r = fptosi <8 x double> %a to <8 x i64>
  ret <8 x i64> %r
}}
"""


@functools.cache
def target() -> Target:
    """Returns the processor that Numba compiles for."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    cpu = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        try:
            features = llvm.get_host_cpu_features().flatten()
        except RuntimeError:  # LLVM does not know them on every system
            features = ""
    return probe(triple, cpu, features)


def probe(triple: str, cpu: str, features: str) -> Target:
    """Returns the processor of these names with what it can do."""
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=2
    )
    assembly = machine.emit_assembly(llvm.parse_assembly(_PROBE.format(triple=triple)))
    return Target(
        triple, cpu, features,
        has_avx512="zmm" in assembly and "vcvttpd2qq" in assembly,
        has_fma="fmaf" not in assembly,
        has_half="extendhfsf2" not in assembly and "gnu_h2f" not in assembly,
    )  # fmt: skip
