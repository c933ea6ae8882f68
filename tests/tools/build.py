"""make: a C project is built by two jobs, and afterwards exactly what depends on a changed header is built again."""

from __future__ import annotations

from pathlib import Path

from tests.tools.programs import run

UNITS = 40

MAKEFILE = """\
CFLAGS = -O1 -Wall -Werror -MMD -MP
OBJECTS = $(patsubst source/%.c,build/%.o,$(wildcard source/*.c))
program: $(OBJECTS)
\t$(CC) -o $@ $^
build/%.o: source/%.c | build
\t$(CC) $(CFLAGS) -c -o $@ $<
build:
\tmkdir -p build
library.a: $(filter-out build/main.o,$(OBJECTS))
\t$(AR) rcs $@ $^
clean:
\trm -rf build program library.a
-include $(OBJECTS:.o=.d)
.PHONY: clean
"""


def make_project(where: Path) -> None:
    """`UNITS` sources that each include one of four headers, a main program and a makefile."""
    (where / "source").mkdir(parents=True)
    (where / "Makefile").write_text(MAKEFILE)
    for header in range(4):
        (where / "source" / f"header{header}.h").write_text(f"#define VALUE{header} {header + 1}\n")
    for unit in range(UNITS):
        (where / "source" / f"unit{unit}.c").write_text(
            f'#include "header{unit % 4}.h"\nint unit{unit}(void);\n'
            f"int unit{unit}(void) {{ return VALUE{unit % 4}; }}\n"
        )
    declared = "".join(f"int unit{unit}(void);\n" for unit in range(UNITS))
    called = " + ".join(f"unit{unit}()" for unit in range(UNITS))
    (where / "source" / "main.c").write_text(
        f'#include <stdio.h>\n{declared}int main(void) {{ printf("%d\\n", {called}); return 0; }}\n'
    )


def _compiled(output: str) -> int:
    return sum(" -c -o build/" in line for line in output.splitlines())


def scenario(directory: Path) -> None:
    """Build, run, nothing to do, one header changed, an archive, clean, and the same program again."""
    project = directory / "project"
    make_project(project)
    assert _compiled(run("make", "-j2", cwd=project)) == UNITS + 1
    assert run("./program", cwd=project) == f"{UNITS // 4 * (1 + 2 + 3 + 4)}\n"
    run("make", "-q", cwd=project)
    (project / "source" / "header2.h").write_text("#define VALUE2 1003\n")
    assert _compiled(run("make", "-j2", cwd=project)) == UNITS // 4
    assert run("./program", cwd=project) == f"{UNITS // 4 * (1 + 2 + 1003 + 4)}\n"
    run("make", "-q", cwd=project)
    run("make", "-j2", "library.a", cwd=project)
    assert len(run("ar", "t", "library.a", cwd=project).split()) == UNITS
    before = (project / "program").read_bytes()
    run("make", "clean", cwd=project)
    assert sorted(p.name for p in project.iterdir()) == ["Makefile", "source"]
    run("make", "-j2", cwd=project)
    assert (project / "program").read_bytes() == before
