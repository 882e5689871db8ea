"""From Python functions to object code, by Numba's front end and one pass of LLVM's optimizer.

Numba's own decorators turn each function into machine code, and the functions that it calls again
as parts of it. For kernels of twenty small functions that takes several seconds. Here only the
kernel becomes machine code: functions marked with `inner` are translated where they are called and
linked to it.

This module is imported only when a kernel is compiled.
"""

import inspect

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba.core import codegen, compiler, registry, typed_passes, types, untyped_passes
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.cpu import CPUContext
from numba.extending import lower_builtin, type_callable

from seg_loss.cpu.target import target


def inner(returns):
    """Marks a function that kernels call.

    Args:
        returns: the type of its result, or a function that returns it for the types of the
            arguments.
    """

    def decorate(function):
        @type_callable(function)
        def typing(context):
            def typer(*args):
                return returns if isinstance(returns, types.Type) else returns(*args)

            typer.__signature__ = inspect.signature(function)
            return typer

        @lower_builtin(function, types.VarArg(types.Any))
        def lowering(context, builder, signature, args):
            return _call(context, builder, function, signature, args)

        return function

    return decorate


def inner_by_element(function, implementations):
    """Marks a function of a vector that has an implementation for each type of element."""

    @type_callable(function)
    def typing(context):
        return lambda vector: vector

    @lower_builtin(function, types.Any)
    def lowering(context, builder, signature, args):
        implementation = implementations[signature.return_type.element]
        return _call(context, builder, implementation, signature, args)


def _call(context, builder, function, signature, args):
    """Emits a call of `function`, which is translated on its first call with these types."""
    key = function, signature
    result = context.functions.get(key)
    if result is None:
        result = context.functions[key] = _translate(context, function, signature)
    context.active_code_library.add_linking_library(result.library)
    # The status of a function says whether it raised an error; these raise none.
    _, value = context.call_internal_no_propagate(builder, result.fndesc, signature, args)
    return value


def compile_to_object(function, symbol: str) -> bytes:
    """Returns the object code of `function`, which takes an int64, as a C function `symbol`."""
    module = compile_to_llvm(function, symbol)
    return _codegen()._tm.emit_object(module)


def _translate(context, function, signature):
    with context.push_code_library(context.codegen().create_library(function.__name__)) as library:
        return compiler.compile_extra(
            context.typing_context, context, function, signature.args, signature.return_type,
            _flags(), {}, library, _Pipeline,
        )  # fmt: skip


class _Pipeline(compiler.CompilerBase):
    """The passes of Numba that kernels need."""

    def define_pipelines(self):
        passes = PassManager("kernel")
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.DeadBranchPrune,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


@global_compiler_lock
def compile_to_llvm(function, symbol: str) -> llvm.ModuleRef:
    """Returns the optimized LLVM module."""
    context = CPUContext(registry.cpu_target.typing_context).subtarget(
        _internal_codegen=_codegen(), aot_mode=True
    )
    context.functions = {}
    context.refresh()
    context.typing_context.refresh()
    result = _translate(context, function, types.void(types.int64))
    module = ir.Module(symbol)
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)]), symbol)
    builder = ir.IRBuilder(entry.append_basic_block())
    native = context.declare_function(module, result.fndesc)
    context.call_conv.call_function(builder, native, types.void, (types.int64,), entry.args)
    builder.ret_void()
    library = context.codegen().create_library(symbol)
    library.add_ir_module(module)
    library.add_linking_library(result.library)
    library.finalize()
    return library.optimized_module(symbol)


def _flags():
    flags = compiler.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    return flags


class _Library(codegen.CPUCodeLibrary):
    """A library that is optimized only when everything is linked."""

    def _optimize_functions(self, module):
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_specific(self):
        pass

    def optimized_module(self, symbol):
        """Returns the module with `symbol` as the only function that is visible outside."""
        for function in self._final_module.functions:
            if not function.is_declaration and function.name != symbol:
                function.linkage = "internal"
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)
        return self._final_module


class _Codegen(codegen.AOTCPUCodegen):
    """Generates code for `target()`."""

    _library_class = _Library

    def _customize_tm_options(self, options):
        super()._customize_tm_options(options)
        options["cpu"], options["features"] = target().cpu, target().features


def _codegen():
    if not _codegens:
        _codegens.append(_Codegen("seg_loss"))
    return _codegens[0]


_codegens: list[_Codegen] = []
