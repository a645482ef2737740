"""From kernels to object code, by LLVM: some seconds, once a machine and version."""

from __future__ import annotations

import llvmlite.binding as llvm

from . import embedding, packer, stages
from .cpu import Target
from .emit import Program


def assembly(target: Target, *, optimised: bool = True) -> str:
    """The kernels in LLVM's language, for people who look into them."""
    return str(_module(target)[0]) if optimised else str(_written(target).module)


def object_code(target: Target) -> bytes:
    """All kernels compiled for a target, as an object file."""
    module, machine = _module(target)
    code: bytes = machine.emit_object(module)
    return code


def _written(target: Target) -> Program:
    program = Program(target)
    stages.define(program)
    packer.define(program)
    embedding.define(program)
    return program


def _module(target: Target) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    """The optimised module and the machine it is for."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="jitdefault"
    )
    module = llvm.parse_assembly(str(_written(target).module))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    # Vectors are written out by hand; looking for more costs time and gains nothing.
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = False  # nor for loops to write out: that is done by hand as well
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module, machine
