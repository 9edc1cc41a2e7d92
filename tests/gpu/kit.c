/*
 * kit.c - the program and all tests of a GPU in one file, so that they share one copy of the
 * library.
 *
 * use: kit NAME [ARGUMENTS]
 *
 * KIT_PROGRAMS is X(name) for each program, whose main was renamed to name_main.
 */
#include <stdio.h>
#include <string.h>

#define X(name) int name##_main(int argc, char **argv);
KIT_PROGRAMS
#undef X

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} programs[] = {
#define X(name) {#name, name##_main},
    KIT_PROGRAMS
#undef X
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof programs / sizeof *programs; i++)
        if (strcmp(programs[i].name, argv[1]) == 0) return programs[i].run(argc - 1, argv + 1);
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        puts(programs[i].name);
    return argc > 1;
}
