"""What is put around programs of other languages so that a pass must be proved.

Each guard reads a random key from standard input before the program's first line, keeps it where
the program has no name for it, and writes it to standard output when the tests have been run to
their end. A program that leaves earlier, in whatever way, has not written it. What a program can do
that looks for the key in its own memory is in docs/sandbox.md.
"""

from __future__ import annotations

import re
import secrets

KEY_CHARACTERS = 64  # a key: so many hexadecimal digits
LENGTH_CHARACTERS = 12  # of the length of a part that follows the key on standard input

# --- C++ ------------------------------------------------------------------------------------------

# Calls the kernel itself, since a program may define functions of the library's names. The key lies
# in a page that cannot be read until main has returned. Linked first, so that it runs before the
# program's own early functions.
CPP_GUARD = """\
namespace {
long call(long number, long a, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result)
        : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
        : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0)
        : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#endif
}
#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, MAP = 9, PROTECT = 10, LEAVE = 231 };
#else
enum { READ = 63, WRITE = 64, MAP = 222, PROTECT = 226, LEAVE = 94 };
#endif
const long SIZE = KEY_CHARACTERS;
unsigned long place;

void early() {
    long page = call(MAP, 0, 4096, 3, 0x22, -1, 0);
    for (long have = 0; have < SIZE;) {
        long got = call(READ, 0, page + have, SIZE - have);
        if (got <= 0) call(LEAVE, 71);
        have += got;
    }
    call(PROTECT, page, 4096, 0);
    place = ~(unsigned long)page;
}
__attribute__((section(".preinit_array"), used)) void (*first)() = early;

void say(const char *text) {
    long length = 0;
    while (text[length]) length++;
    call(WRITE, 2, (long)text, length);
}
}

[[noreturn]] void FAILED(const char *text) {
    say("assertion failed: ");
    say(text);
    say("\\n");
    for (;;) call(LEAVE, 1);
}

extern "C" int __real_main(int, char **, char **);
extern "C" int __wrap_main(int count, char **words, char **environment) {
    int status = __real_main(count, words, environment);
    if (status == 0) {
        call(PROTECT, (long)~place, 4096, 1);
        call(WRITE, 1, (long)~place, SIZE);
    }
    return status;
}
""".replace("KEY_CHARACTERS", str(KEY_CHARACTERS))
# Found ahead of the system's: its __assert_fail could be defined by the program.
CPP_ASSERT = """\
#undef assert
#ifndef CODECRIA_ASSERT
#define CODECRIA_ASSERT
[[noreturn]] void FAILED(const char *);
#endif
#ifdef NDEBUG
#define assert(...) ((void)0)
#else
#define assert(...) ((__VA_ARGS__) ? (void)0 : FAILED(#__VA_ARGS__))
#endif
"""
_NAME = re.compile(r"[A-Za-z_]\w*")
# Words that cannot be macros: the operators spelled out, and the preprocessor's own.
_NEVER = frozenset(
    (
        *("and", "and_eq", "bitand", "bitor", "compl", "not", "not_eq", "or", "or_eq"),
        *("xor", "xor_eq", "defined", "__has_include", "__has_cpp_attribute"),
    )
)
_ALWAYS = ("assert", "NDEBUG", "main", "void", "int", "return")


def cpp_files(source: str, tests: str) -> dict[str, str]:
    """The files of a C++ program. What its assertions call has another name each time, so that a
    solution cannot define it."""
    name = f"failed_{secrets.token_hex(8)}"
    return {
        "guard.cpp": CPP_GUARD.replace("FAILED", name),
        "main.cpp": cpp_program(source, tests),
        "include/assert.h": CPP_ASSERT.replace("FAILED", name),
    }


def cpp_program(source: str, tests: str) -> str:
    """A C++ program with its tests, which no macro of the solution changes.

    Macros named as words of the tests are undefined ahead of them, but for those written large,
    which are the library's constants. The tests may begin within a function, as MultiPL-E's do.
    """
    if not tests:
        return source
    names = {name for name in _NAME.findall(tests) if name != name.upper()}
    undone = "".join(f"#undef {name}\n" for name in sorted((names | set(_ALWAYS)) - _NEVER))
    return f"{source}\n\n{undone}#include <assert.h>\n{tests}"


def cpp_refusal(source: str) -> str:
    """What in a C++ solution could take the place of the tests' main; empty where nothing does."""
    # White space may stand anywhere in a directive, and a line's end behind a backslash is none.
    joined = re.sub(r"\\[ \t]*\r?\n", "", source)
    found = re.search(r"\b(?:__asm__|__asm|asm|redefine_extname)\b", joined)
    return f"the sandbox does not allow {found[0]}" if found else ""


# --- Java -----------------------------------------------------------------------------------------

JAVA_GUARD_NAME = "CodecriaGuard"
# The key is in a local variable, which reflection does not reach; modules that could dump or read
# memory are not there (languages.py). The classes come by standard input: no file holds them, and
# when all are defined nothing holds their bytes.
_JAVA_GUARD = """\
public final class CodecriaGuard extends ClassLoader {
    private java.util.Map<String, byte[]> left = new java.util.TreeMap<>();

    private CodecriaGuard() { super(CodecriaGuard.class.getClassLoader()); }

    @Override protected Class<?> findClass(String name) throws ClassNotFoundException {
        byte[] code = left == null ? null : left.remove(name);
        if (code == null) throw new ClassNotFoundException(name);
        return defineClass(name, code, 0, code.length);
    }

    private static byte[] take(int size) throws java.io.IOException {
        java.io.FileInputStream in = new java.io.FileInputStream(java.io.FileDescriptor.in);
        byte[] taken = new byte[size];
        for (int have = 0; have < size;) {
            int got = in.read(taken, have, size - have);
            if (got <= 0) Runtime.getRuntime().halt(71);
            have += got;
        }
        return taken;
    }

    private static byte[] part() throws java.io.IOException {
        return take(Integer.parseInt(new String(take(LENGTH)).trim()));
    }

    public static void main(String[] words) throws Throwable {
        java.io.FileOutputStream out = new java.io.FileOutputStream(java.io.FileDescriptor.out);
        byte[] key = take(SIZE);
        CodecriaGuard loader = new CodecriaGuard();
        for (int count = Integer.parseInt(new String(part())); count > 0; count -= 2) {
            String file = new String(part(), java.nio.charset.StandardCharsets.UTF_8);
            if (file.endsWith(".class"))
                loader.left.put(file.substring(0, file.length() - 6).replace('/', '.'), part());
            else part();
        }
        String[] used = {USED};
        for (String made : loader.left.keySet()) {
            String name = made.substring(made.lastIndexOf('$') + 1);
            for (String known : used) {
                if (!known.equals(name)) continue;
                for (String home : new String[] {"java.lang.", "java.util.", "java.io.",
                        "java.math.", "java.util.stream.", "java.util.function."}) {
                    boolean theirs = true;
                    try {
                        Class.forName(home + name, false, null);
                    } catch (ClassNotFoundException none) {
                        theirs = false;
                    }
                    if (theirs) {
                        System.err.println("the solution replaces the class " + name);
                        Runtime.getRuntime().halt(1);
                    }
                }
            }
        }
        for (String made : new java.util.TreeSet<>(loader.left.keySet()))
            if (loader.left.containsKey(made)) loader.loadClass(made);
        loader.left = null;
        java.lang.reflect.Method entry;
        entry = loader.loadClass("ENTRY").getDeclaredMethod("main", String[].class);
        entry.setAccessible(true);
        try {
            entry.invoke(null, (Object) new String[0]);
            out.write(key);
        } catch (java.lang.reflect.InvocationTargetException raised) {
            throw raised.getCause();
        } finally {
            java.util.Arrays.fill(key, (byte) 0);
        }
    }
}
"""


def java_entry(source: str, tests: str) -> str:
    """The class whose main is run: the tests' own, else the public or the first one."""
    for text in (tests, source):
        public = re.search(r"^\s*public\s+(?:final\s+)?class\s+(\w+)", text, re.MULTILINE)
        if public:
            return public[1]
    first = re.search(r"^\s*(?:final\s+)?class\s+(\w+)", source, re.MULTILINE)
    return first[1] if first else "Main"


def java_guard(entry: str, tests: str) -> str:
    """The class that runs another's main and proves that it returned."""
    # Of words of a kind alone can the tests' meaning be changed by a class of that name.
    used = sorted({name for name in _NAME.findall(tests) if name[0].isupper()} | {"System"})
    listed = ", ".join(f'"{name}"' for name in used)
    text = _JAVA_GUARD.replace("SIZE", str(KEY_CHARACTERS)).replace("USED", listed)
    return text.replace("LENGTH", str(LENGTH_CHARACTERS)).replace("ENTRY", entry)


# --- JavaScript -----------------------------------------------------------------------------------

# The key is in a closure, which nothing in the language leads to, until the tests have ended;
# modules that could show the heap are not given out. The tests are a function of the globals they
# name, so that neither a global of that name nor a `const` stands in their way; what is in those is
# put back first.
JS_GUARD = """\
'use strict';
(() => {
  const fs = require('fs'), vm = require('vm'), Module = require('module');
  const assert = require('assert');
  const take = (size) => {
    const taken = Buffer.alloc(size);
    for (let have = 0; have < size;) {
      const got = fs.readSync(0, taken, have, size - have, null);
      if (got <= 0) process.exit(71);
      have += got;
    }
    return taken;
  };
  const part = () => take(Number(take(LENGTH).toString())).toString('utf8');
  const key = take(SIZE);
  const fill = Uint8Array.prototype.fill;
  const write = fs.writeSync;
  // Neither is in a file, an argument or the environment.
  part();
  const solution = part(), tests = part();
  const refused = new Set(['inspector', 'inspector/promises', 'v8', 'worker_threads', 'cluster',
    'child_process', 'vm', 'module', 'repl', 'wasi', 'diagnostics_channel', 'async_hooks',
    'trace_events', 'perf_hooks', 'test', 'process']);
  const load = Module._load, has = Set.prototype.has, apply = Reflect.apply;
  const slice = String.prototype.slice;
  const builtins = new Set(Module.builtinModules);
  const libraries = { __proto__: null };
  try { libraries['js-md5'] = require('js-md5'); } catch (none) { /* it is not installed */ }
  // Files are not loaded: what Node itself loads may import what is refused here.
  const given = (name) => {
    if (typeof name !== 'string') throw new TypeError('a module has a name');
    if (libraries[name] !== undefined) return libraries[name];
    const plain = apply(slice, name, [0, 5]) === 'node:' ? apply(slice, name, [5]) : name;
    if (!apply(has, builtins, [plain]) || apply(has, refused, [plain])) {
      throw new Error('the sandbox does not allow ' + plain);
    }
    return load(name, null, false);
  };
  Module._load = () => { throw new Error('the sandbox does not allow this'); };
  for (const name of ['binding', '_linkedBinding', 'dlopen', 'getBuiltinModule', 'mainModule',
    '_debugProcess', '_debugEnd', '_startProfilerIdleNotifier', '_rawDebug', 'report',
    '_getActiveHandles', '_getActiveRequests']) {
    Object.defineProperty(process, name, { value: undefined });
  }
  delete process.moduleLoadList;
  require.cache = undefined;
  const module_ = { exports: {} };
  Object.assign(globalThis, { require: given, module: module_, exports: module_.exports });

  const own = Reflect.ownKeys, describe = Reflect.getOwnPropertyDescriptor;
  const define = Reflect.defineProperty, proto = Reflect.getPrototypeOf;
  const link = Reflect.setPrototypeOf, same = Object.is;
  const kept = [];
  const seen = new Set();
  const keep = (part) => {
    if (part === null || !['object', 'function'].includes(typeof part) || seen.has(part)) return;
    seen.add(part);
    kept.push([part, own(part).map((name) => [name, describe(part, name)]), proto(part)]);
  };
  const NAMES = ['Object', 'Function', 'Array', 'String', 'Number', 'Boolean', 'Symbol', 'BigInt',
    'Math', 'JSON', 'Map', 'Set', 'WeakMap', 'WeakSet', 'Date', 'RegExp', 'Promise', 'Reflect',
    'Error', 'TypeError', 'RangeError', 'SyntaxError', 'console'];
  // Frames of the tests' functions, and so their text, are not given out.
  Object.defineProperty(Error, 'prepareStackTrace', { value: undefined });
  keep(globalThis);
  for (const name of NAMES) {
    keep(globalThis[name]);
    keep(globalThis[name].prototype);
  }
  for (const part of [[], new Map(), new Set(), '']) {
    keep(proto(part[Symbol.iterator]()));
  }
  keep(proto(proto([][Symbol.iterator]())));
  keep(proto(function* () {}));
  keep(assert);
  keep(assert.strict);
  keep(assert.AssertionError);
  keep(assert.AssertionError.prototype);
  const restore = () => {
    for (let n = 0; n < kept.length; n++) {
      const part = kept[n][0], held = kept[n][1];
      if (!same(proto(part), kept[n][2]) && !link(part, kept[n][2])) return false;
      for (let m = 0; m < held.length; m++) {
        const was = held[m][1], is = describe(part, held[m][0]);
        if (is !== undefined && same(is.value, was.value) && same(is.get, was.get)
          && same(is.set, was.set)) continue;
        if (held[m][0] === 'exitCode') continue;
        if (!define(part, held[m][0], was)) return false;
      }
    }
    return true;
  };
  const identifier = /^[A-Za-z_$][\\w$]*$/;
  const words = new Set(tests.match(/[A-Za-z_$][\\w$]*/g) || []);
  const names = [...new Set([...Object.getOwnPropertyNames(globalThis), 'require'])]
    .filter((name) => identifier.test(name) && words.has(name)
      && !['undefined', 'NaN', 'Infinity', 'module', 'exports'].includes(name));
  const values = names.map((name) => globalThis[name]);
  // What the tests call of the solution's they call through functions in strict mode: the caller
  // of a function is shown to it otherwise, with its text.
  const through = { __proto__: null,
    apply: (wanted, self, given) => apply(wanted, self, given),
    construct: (wanted, given, target) => construct(wanted, given, target) };
  const Proxy_ = Proxy, construct = Reflect.construct;
  const { runInThisContext, compileFunction } = vm;
  const complain = (told) => { throw new Error(told); };
  try {
    runInThisContext(solution, { filename: 'solution.js' });
    if (!restore()) complain('the solution has changed what the tests stand on');
    for (const word of words) {
      if (!identifier.test(word) || names.includes(word)) continue;
      let found;
      try {
        found = runInThisContext('typeof ' + word + " === 'function' ? " + word + ' : undefined');
      } catch (none) { continue; }  // a word of the language's
      if (typeof found !== 'function') continue;
      names.push(word);
      values.push(new Proxy_(found, through));
    }
    const checks = compileFunction('{\\n' + tests + '\\n}', names, { filename: 'tests.js' });
    apply(checks, undefined, values);
    write(1, key);
  } finally {
    apply(fill, key, [0]);  // what is left to run, such as timers, finds nothing
  }
})();
""".replace("SIZE", str(KEY_CHARACTERS)).replace("LENGTH", str(LENGTH_CHARACTERS))
