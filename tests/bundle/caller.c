/*
 * caller.c - calls library.c through the packed library; prints nothing when all results are right.
 *
 * use: caller KIND     KIND: the function to call first, or `threads`: eight threads at once
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct library_pair {
    long number, double_of_it;
};
int    library_inner(int a);
int    library_outer(int a);
double library_floats(float a, double b, float c, double d, float e, double f, float g, double h);
long   library_many(long a, long b, long c, long d, long e, long f, long g, long h, long i);
double library_any(int count, ...);
struct library_pair library_twice(long number);

enum { THREADS = 8 };

static pthread_barrier_t barrier;

static int call(const char *kind)
{
    if (strcmp(kind, "inner") == 0) return library_inner(41) == 42;
    if (strcmp(kind, "outer") == 0) return library_outer(41) == 420;
    if (strcmp(kind, "floats") == 0) return library_floats(1, 2, 3, 4, 5, 6, 7, 8) == 204;
    if (strcmp(kind, "many") == 0) return library_many(1, 2, 3, 4, 5, 6, 7, 8, 9) == 285;
    if (strcmp(kind, "any") == 0) return library_any(9, 1., 2., 3., 4., 5., 6., 7., 8., 9.) == 45;
    struct library_pair pair = library_twice(21);
    return pair.number == 21 && pair.double_of_it == 42;
}

static const char *const kinds[] = {"inner", "outer", "floats", "many", "any", "twice"};

static void *one_of_many(void *kind)
{
    (void)pthread_barrier_wait(&barrier);
    return call(kind) ? NULL : kind;
}

static int call_at_once(void)
{
    pthread_t threads[THREADS];
    int       good = 1;

    (void)pthread_barrier_init(&barrier, NULL, THREADS);
    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, one_of_many, (void *)(size_t)kinds[i % 6]) != 0)
            return 0;
    for (size_t i = 0; i < THREADS; i++) {
        void *wrong = NULL;
        (void)pthread_join(threads[i], &wrong);
        good = good && wrong == NULL;
    }
    return good;
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "inner";

    if (!(strcmp(kind, "threads") == 0 ? call_at_once() : call(kind)))
        printf("%s: wrong at its first call\n", kind);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!call(kinds[i])) printf("%s: wrong after %s\n", kinds[i], kind);
    return 0;
}
