"""From Python functions to object code, by Numba's front end and one pass of LLVM's optimizer.

Numba's own decorators turn each function into machine code, and the functions that it calls again
as parts of it. For kernels of twenty small functions that takes several seconds. Here only the
kernel becomes machine code: functions marked with `inner` are translated where they are called and
linked to it.

This module is imported only when a kernel is compiled.
"""

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba.core import codegen, compiler, typed_passes, types, untyped_passes
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.cpu import CPUContext
from numba.core.typing import arraydecl, mathdecl, templates  # noqa: F401
from numba.core.typing.context import BaseContext
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401
from numba.extending import lower_builtin
from numba.np import arrayobj  # noqa: F401

from seg_loss.cpu.target import target


def inner(returns):
    """Marks a function that kernels call.

    Args:
        returns: the type of its result, or a function that returns it for the types of the
            arguments.
    """

    def decorate(function):
        def typing(_, *args):
            result = returns if isinstance(returns, types.Type) else returns(*args)
            return result(*args)

        def lowering(context, builder, signature, args):
            return _call(context, builder, function, signature, args)

        _declare(function, typing, lowering)
        return function

    return decorate


def inner_by_element(function, implementations):
    """Marks a function of a vector that has an implementation for each type of element."""

    def lowering(context, builder, signature, args):
        implementation = implementations[signature.return_type.element]
        return _call(context, builder, implementation, signature, args)

    _declare(function, lambda _, vector: vector(vector), lowering)


def intrinsic(function=None, *, prefer_literal=False):
    """Marks a function that returns the signature of a call and what emits its code.

    Numba's decorator of this name does the same, but refreshes all of Numba at each call.
    """

    def decorate(function):
        def lowering(context, builder, signature, args):
            _, emit = function(context.typing_context, *signature.args)
            return emit(context, builder, signature, args)

        _declare(function, lambda *args: function(*args)[0], lowering, prefer_literal)
        return function

    return decorate if function is None else decorate(function)


def _declare(function, typing, lowering, prefer_literal=False):
    """Declares how calls of a function are typed, and how they are translated.

    Args:
        function: the function as kernels name it.
        typing: returns the signature for the typing context and the types of the arguments.
        lowering: emits the code.
        prefer_literal: whether the types of constants tell their values.
    """

    class Template(AbstractTemplate):
        key = function

        def generic(self, args, kws):
            return typing(self.context, *args)

    Template.prefer_literal = prefer_literal
    infer_global(function, types.Function(Template))
    lower_builtin(function, types.VarArg(types.Any))(lowering)


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
            context.typing_context,
            context,
            function,
            signature.args,
            signature.return_type,
            _flags(),
            {},
            library,
            _Pipeline,
        )


class _Pipeline(compiler.CompilerBase):
    """The passes of Numba that kernels need."""

    def define_pipelines(self):
        passes = PassManager("kernel")
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
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
    context = _Context(_TypingContext()).subtarget(_internal_codegen=_codegen(), aot_mode=True)
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


class _TypingContext(BaseContext):
    """The types of Python's functions and of `math`; Numba's own context also knows NumPy's.

    Declarations that Numba compiles when they are called are left out: each would load the rest.
    """

    def refresh(self):
        """Installs the declarations, once: all are made before a kernel is compiled."""
        if self._functions:
            return
        declared = templates.Registry()
        for kind in "functions", "attributes", "globals":
            known = getattr(templates.builtin_registry, kind)
            getattr(declared, kind).extend(filter(_is_no_overload, known))
        self.install_registry(declared)
        self.install_registry(mathdecl.registry)


def _is_no_overload(declaration):
    return not (
        isinstance(declaration, type)
        and issubclass(declaration, templates._TemplateTargetHelperMixin)
    )


class _Context(CPUContext):
    """The implementations of the same functions."""

    def load_additional_registries(self):
        self.install_registry(mathimpl.registry)

    def post_lowering(self, module, library):
        """Does nothing: Numba links its runtime here, and kernels allocate no memory."""


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
        passes, builder = self._codegen._module_pass_manager(opt=2)
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
