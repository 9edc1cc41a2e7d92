/*
 * library.c - stands in for oneDNN: functions whose arguments come in every way that there is.
 *
 * When it is loaded it calls a function of its own that the packed library has under the same name:
 * a call that came back to the packed library would wait for ever.
 */
#include <stdarg.h>
#include <stdlib.h>

int    library_inner(int a);
int    library_outer(int a);
double library_floats(float a, double b, float c, double d, float e, double f, float g, double h);
long   library_many(long a, long b, long c, long d, long e, long f, long g, long h, long i);
double library_any(int count, ...);
struct library_pair {
    long number, double_of_it;
};
struct library_pair library_twice(long number);

int library_inner(int a)
{
    return a + 1;
}

int library_outer(int a)
{
    return 10 * library_inner(a);
}

double library_floats(float a, double b, float c, double d, float e, double f, float g, double h)
{
    return (double)a + 2 * b + 3 * (double)c + 4 * d + 5 * (double)e + 6 * f + 7 * (double)g +
           8 * h;
}

long library_many(long a, long b, long c, long d, long e, long f, long g, long h, long i)
{
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i;
}

double library_any(int count, ...)
{
    double  sum = 0;
    va_list list;
    va_start(list, count);
    for (int i = 0; i < count; i++)
        sum += va_arg(list, double);
    va_end(list);
    return sum;
}

struct library_pair library_twice(long number)
{
    return (struct library_pair){number, 2 * number};
}

__attribute__((constructor)) static void loaded(void)
{
    if (library_outer(4) != 50) abort();
}
