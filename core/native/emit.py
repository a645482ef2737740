"""A small language for kernels: Python that writes LLVM code, one instruction an operation.

    program = Program(target)

    @program.define("scale", arguments=3)               # (data, count, factor's address)
    def scale(c: Code, data: Value, count: Value, factor: Value) -> None:
        by = c.splat(c.load(factor, F32))
        with c.loop(0, count * 4, 64) as i:             # a loop at run time
            c.store(data + i, c.load(data + i, FLOATS) * by)

A `Value` is one LLVM value; Python loops and conditions run while the code is written, which is how
kernels are unrolled and their variants made. Addresses and numbers are 64-bit integers, vectors
have 16 lanes of float32 or int32 (LLVM splits them where a register is smaller). Nothing allocates,
raises or calls a library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from llvmlite import ir

from .cpu import Target

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
LANES = 16
FLOATS = ir.VectorType(F32, LANES)
INTS = ir.VectorType(I32, LANES)
SHORTS = ir.VectorType(I16, LANES)
BYTES = ir.VectorType(I8, LANES)
PAIRS = ir.VectorType(I16, 2 * LANES)  # INTS seen as 32 halves
CODES = ir.VectorType(I8, 4 * LANES)  # INTS seen as 64 bytes
_POINTER = ir.PointerType()
Hint = Literal["all", "second", "once"]
_LOCALITY: dict[Hint, int] = {"all": 3, "second": 2, "once": 0}  # LLVM's
_COMPARE = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "==": "==", "!=": "!="}


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An LLVM value with Python's operators; a Python number beside it becomes a constant."""

    code: Code
    ir: Any

    @property
    def type(self) -> Any:
        """Its LLVM type."""
        return self.ir.type

    @property
    def count(self) -> int:
        """How many lanes a vector has."""
        return int(self.type.count)

    @property
    def is_float(self) -> bool:
        """Whether it is a float32 or a vector of them."""
        return isinstance(getattr(self.type, "element", self.type), ir.FloatType)

    def _with(self, name: str, other: Value | float, *, swapped: bool = False) -> Value:
        right = self.code.like(self, other)
        left, right = (right, self) if swapped else (self, right)
        builder = self.code.builder
        operation = getattr(builder, ("f" if self.is_float else "") + name)
        return Value(self.code, operation(left.ir, right.ir))

    def __add__(self, other: Value | float) -> Value:
        return self._with("add", other)

    def __radd__(self, other: float) -> Value:
        return self._with("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._with("sub", other)

    def __rsub__(self, other: float) -> Value:
        return self._with("sub", other, swapped=True)

    def __mul__(self, other: Value | float) -> Value:
        return self._with("mul", other)

    def __rmul__(self, other: float) -> Value:
        return self._with("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._with("div", other)

    def __floordiv__(self, other: Value | int) -> Value:
        """Of integers that are not negative."""
        return Value(self.code, self.code.builder.udiv(self.ir, self.code.like(self, other).ir))

    def __mod__(self, other: Value | int) -> Value:
        """Of integers that are not negative."""
        return Value(self.code, self.code.builder.urem(self.ir, self.code.like(self, other).ir))

    def __and__(self, other: Value | int) -> Value:
        return Value(self.code, self.code.builder.and_(self.ir, self.code.like(self, other).ir))

    def __or__(self, other: Value | int) -> Value:
        return Value(self.code, self.code.builder.or_(self.ir, self.code.like(self, other).ir))

    def __lshift__(self, other: int) -> Value:
        return Value(self.code, self.code.builder.shl(self.ir, self.code.like(self, other).ir))

    def __rshift__(self, other: int) -> Value:
        """Without regard to the sign."""
        return Value(self.code, self.code.builder.lshr(self.ir, self.code.like(self, other).ir))

    def compare(self, operator: str, other: Value | float) -> Value:
        """Truth values, one a lane: signed integers, or floats (false where one is NaN)."""
        builder, right = self.code.builder, self.code.like(self, other).ir
        compare = builder.fcmp_ordered if self.is_float else builder.icmp_signed
        return Value(self.code, compare(_COMPARE[operator], self.ir, right))

    def __lt__(self, other: Value | float) -> Value:
        return self.compare("<", other)

    def __ge__(self, other: Value | float) -> Value:
        return self.compare(">=", other)

    def __gt__(self, other: Value | float) -> Value:
        return self.compare(">", other)

    def equals(self, other: Value | float) -> Value:
        """Truth of equality; == compares Python objects."""
        return self.compare("==", other)

    def cast(self, kind: Any) -> Value:
        """The same bits as another type of the same size."""
        return Value(self.code, self.code.builder.bitcast(self.ir, kind))

    def to_float(self) -> Value:
        """Lanes of integers as float32."""
        kind = FLOATS if self.type == INTS else F32
        return Value(self.code, self.code.builder.sitofp(self.ir, kind))

    def to_int(self) -> Value:
        """Lanes of whole float32 numbers as integers."""
        return Value(self.code, self.code.builder.fptosi(self.ir, INTS))

    def widen(self, kind: Any, *, signed: bool) -> Value:
        """Integers as wider ones."""
        extend = self.code.builder.sext if signed else self.code.builder.zext
        return Value(self.code, extend(self.ir, kind))

    def narrow(self, kind: Any) -> Value:
        """Integers as narrower ones: the low bits."""
        return Value(self.code, self.code.builder.trunc(self.ir, kind))

    def lanes(self, order: Sequence[int], other: Value | None = None) -> Value:
        """A vector of chosen lanes; those of `other` count on from this one's."""
        mask = ir.Constant(ir.VectorType(I32, len(order)), list(order))
        second = self if other is None else other
        return Value(self.code, self.code.builder.shuffle_vector(self.ir, second.ir, mask))

    def lane(self, number: int) -> Value:
        """One lane as a scalar."""
        return Value(
            self.code, self.code.builder.extract_element(self.ir, ir.Constant(I32, number))
        )


@dataclass(frozen=True, slots=True)
class Variable:
    """A value that loops change; it lives in a register after optimisation."""

    code: Code
    slot: Any
    kind: Any

    @property
    def value(self) -> Value:
        """What it holds now."""
        return Value(self.code, self.code.builder.load(self.slot, typ=self.kind))

    def set(self, value: Value) -> None:
        """Let it hold another value."""
        self.code.builder.store(value.ir, self.slot)


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A compiled function, called from others with 64-bit integers."""

    ir: Any


@dataclass(slots=True)
class Program:
    """The functions that are compiled together.

    Attributes:
        target: the CPU they are compiled for.
    """

    target: Target
    module: Any = field(init=False)

    def __post_init__(self) -> None:
        self.module = ir.Module("kernels")
        self.module.triple = self.target.triple

    def define(
        self, name: str, *, arguments: int, public: bool = False
    ) -> Callable[[Callable[..., Value | None]], Function]:
        """Define a function of 64-bit integers by the Python function that writes its body.

        Args:
            name: of the function in the object file.
            arguments: how many it takes.
            public: whether Python calls it by name.

        A body that returns a Value makes a function that returns a 64-bit integer.
        """

        def wrap(body: Callable[..., Value | None]) -> Function:
            returns = I64 if body.__annotations__.get("return") in ("Value", Value) else None
            kind = ir.FunctionType(returns or ir.VoidType(), [I64] * arguments)
            function = ir.Function(self.module, kind, name)
            function.attributes.add("noinline")
            function.attributes.add("nounwind")
            if not public:
                function.linkage = "internal"
            code = Code(self, ir.IRBuilder(function.append_basic_block("entry")))
            result = body(code, *(Value(code, argument) for argument in function.args))
            if not code.builder.block.is_terminated:
                if returns is None:
                    code.builder.ret_void()
                else:
                    assert result is not None, name
                    code.builder.ret(result.ir)
            return Function(function)

        return wrap


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """The function that is being written: everything that is not an operator of a `Value`."""

    program: Program
    builder: Any

    # Constants and conversions

    def like(self, value: Value, other: Value | float) -> Value:
        """`other` as a value of the same type: a number becomes a constant in every lane."""
        return other if isinstance(other, Value) else self.constant(value.type, other)

    def constant(self, kind: Any, number: float) -> Value:
        """A number of a type, in every lane of a vector."""
        if isinstance(kind, ir.VectorType):
            return Value(self, ir.Constant(kind, [number] * kind.count))
        return Value(self, ir.Constant(kind, number))

    def number(self, number: int) -> Value:
        """A 64-bit integer."""
        return self.constant(I64, number)

    def splat(self, scalar: Value) -> Value:
        """A scalar in all 16 lanes."""
        kind = ir.VectorType(scalar.type, LANES)
        nothing = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(nothing, scalar.ir, ir.Constant(I32, 0))
        mask = ir.Constant(INTS, [0] * LANES)
        return Value(self, self.builder.shuffle_vector(one, nothing, mask))

    def float_of(self, whole: Value) -> Value:
        """A 64-bit integer as float32."""
        return Value(self, self.builder.sitofp(whole.ir, F32))

    # Memory

    def load(self, address: Value, kind: Any) -> Value:
        """What lies at an address, which need not be aligned."""
        pointer = self.builder.inttoptr(address.ir, _POINTER)
        return Value(self, self.builder.load(pointer, align=1, typ=kind))

    def store(self, address: Value, value: Value) -> None:
        """Write to an address, which need not be aligned."""
        self.builder.store(value.ir, self.builder.inttoptr(address.ir, _POINTER), align=1)

    def load_splat(self, address: Value, kind: Any) -> Value:
        """A scalar of memory in all 16 lanes."""
        return self.splat(self.load(address, kind))

    def prefetch(self, address: Value, hint: Hint = "all") -> None:
        """Ask for the cache line of an address that is read soon; any address will do.

        Args:
            address: a byte of the line.
            hint: "all" caches may hold it; "second" and larger ones; "once": it is read once only,
                and need not push others out of the caches.
        """
        self.intrinsic(
            "llvm.prefetch.p0",
            ir.VoidType(),
            Value(self, self.builder.inttoptr(address.ir, _POINTER)),
            *(self.constant(I32, argument) for argument in (0, _LOCALITY[hint], 1)),
        )

    def atomic_load(self, address: Value) -> Value:
        """Read a word that other threads write; what they wrote before is seen afterwards."""
        pointer = self.builder.inttoptr(address.ir, _POINTER)
        return Value(self, self.builder.load_atomic(pointer, "acquire", 8, typ=I64))

    def atomic_store(self, address: Value, value: Value) -> None:
        """Write a word for other threads, after everything written before."""
        pointer = self.builder.inttoptr(address.ir, _POINTER)
        # An exchange, as llvmlite's store_atomic knows no untyped pointers.
        self.builder.atomic_rmw("xchg", pointer, value.ir, "acq_rel")

    def atomic_add(self, address: Value, amount: Value | int) -> Value:
        """Add to a word that other threads add to; returns what it was."""
        pointer = self.builder.inttoptr(address.ir, _POINTER)
        added = self.like(self.number(0), amount).ir
        return Value(self, self.builder.atomic_rmw("add", pointer, added, "acq_rel"))

    def pause(self) -> None:
        """Spare the core a little while waiting."""
        if self.program.target.is_x86:
            self.intrinsic("llvm.x86.sse2.pause", ir.VoidType())
        elif self.program.target.is_arm:
            self.intrinsic("llvm.aarch64.hint", ir.VoidType(), self.constant(I32, 1))  # yield

    # Control

    def variable(self, value: Value) -> Variable:
        """A variable that starts with a value."""
        with self.builder.goto_entry_block():
            slot = self.builder.alloca(value.type)
        variable = Variable(self, slot, value.type)
        variable.set(value)
        return variable

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: Value | int = 1) -> Iterator[Value]:
        """Repeat what is written inside, for integers from `start` while below `stop`."""
        first, last = self.like(self.number(0), start), self.like(self.number(0), stop)
        counter = self.variable(first)
        head, body, end = (
            self.builder.append_basic_block(name) for name in ("head", "body", "end")
        )
        self.builder.branch(head)
        self.builder.position_at_end(head)
        now = counter.value
        self.builder.cbranch((now < last).ir, body, end)
        self.builder.position_at_end(body)
        yield now
        counter.set(now + step)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextmanager
    def repeat(self) -> Iterator[Callable[[Value], None]]:
        """Repeat what is written inside until the function it is given is called with a truth."""
        body = self.builder.append_basic_block("repeat")
        end = self.builder.append_basic_block("done")
        self.builder.branch(body)
        self.builder.position_at_end(body)

        def leave_if(truth: Value) -> None:
            stay = self.builder.append_basic_block("stay")
            self.builder.cbranch(truth.ir, end, stay)
            self.builder.position_at_end(stay)

        yield leave_if
        self.builder.branch(body)
        self.builder.position_at_end(end)

    def when(self, truth: Value) -> AbstractContextManager[Any]:
        """Run what is written inside where a truth value holds."""
        condition: AbstractContextManager[Any] = self.builder.if_then(truth.ir)
        return condition

    def either(self, truth: Value) -> AbstractContextManager[tuple[Any, Any]]:
        """Two contexts: `with c.either(x) as (then, otherwise)`."""
        condition: AbstractContextManager[tuple[Any, Any]] = self.builder.if_else(truth.ir)
        return condition

    def select(self, truth: Value, yes: Value, no: Value) -> Value:
        """One of two values, lane by lane."""
        return Value(self, self.builder.select(truth.ir, yes.ir, no.ir))

    def smaller(self, one: Value, other: Value | int) -> Value:
        """The smaller of two integers."""
        second = self.like(one, other)
        return self.select(one < second, one, second)

    def larger(self, one: Value, other: Value | int) -> Value:
        """The larger of two integers."""
        second = self.like(one, other)
        return self.select(one > second, one, second)

    def call(self, function: Function, *arguments: Value | int) -> Value:
        """Call a function defined before."""
        values = [self.like(self.number(0), argument).ir for argument in arguments]
        return Value(self, self.builder.call(function.ir, values))

    def intrinsic(self, name: str, returns: Any, *arguments: Value) -> Value:
        """Call one of LLVM's own operations."""
        module = self.program.module
        known = module.globals.get(name)
        if known is None:
            kind = ir.FunctionType(returns, [argument.type for argument in arguments])
            known = ir.Function(module, kind, name)
        return Value(self, self.builder.call(known, [argument.ir for argument in arguments]))
