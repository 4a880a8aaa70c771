/* Which instruction sets this processor (and its operating system) can run, and of which sources
 * the library was made. Compiled without any of them, so that it can be asked anywhere. */
#define EXPORT __attribute__((visibility("default")))

EXPORT const char *amn_sources(void) { return SOURCES; }

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

EXPORT int amn_runs_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

EXPORT int amn_runs_avx512(void) {
    __builtin_cpu_init();
    return amn_runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

/* Asked of the processor itself: older compilers do not know the set's name. */
EXPORT int amn_runs_avx512bf16(void) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return amn_runs_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && a >= 1 &&
           __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#else
EXPORT int amn_runs_avx2(void) { return 0; }
EXPORT int amn_runs_avx512(void) { return 0; }
EXPORT int amn_runs_avx512bf16(void) { return 0; }
#endif
