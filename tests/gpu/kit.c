/*
 * kit.c - the program and all tests of a GPU in one file, so that they share one copy of the
 * library.
 *
 * use: kit NAME [ARGUMENTS]
 *
 * Under the name of one of its programs, kit is that program: by a link of that name, and where
 * mural starts itself again, as it does to paint in processes of its own.
 *
 * KIT_PROGRAMS is X(name) for each program, whose main was renamed to name_main.
 */
#include <stdbool.h>
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

/* Runs the program of this name, if it is one of ours. */
static bool run(const char *name, int argc, char **argv, int *status_out)
{
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (strcmp(programs[i].name, name) == 0) {
            *status_out = programs[i].run(argc, argv);
            return true;
        }
    return false;
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    int         status = argc > 1;

    if (argc > 0 && run(slash != NULL ? slash + 1 : argv[0], argc, argv, &status)) return status;
    if (argc > 1 && run(argv[1], argc - 1, argv + 1, &status)) return status;
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        puts(programs[i].name);
    return status;
}
