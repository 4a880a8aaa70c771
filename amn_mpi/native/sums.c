/* Sums in fixed point. Compiled once for every instruction set, with ISA given; all round alike. */
#include <math.h>
#include <stdint.h>
#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#define JOIN2(a, b) amn_##a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define API(name) JOIN(ISA, name)

/* total += values * scale, each rounded to the nearest integer, halves to the even one. */
__attribute__((visibility("default"))) void API(add_fixed)(int64_t *restrict total, const float *restrict values,
                                                           int64_t count, double scale) {
    int64_t i = 0;
#if defined(__AVX512DQ__)
    const __m512d by = _mm512_set1_pd(scale);
    for (; i + 8 <= count; i += 8) {
        const __m512d exact = _mm512_mul_pd(_mm512_cvtps_pd(_mm256_loadu_ps(values + i)), by);
        const __m512i sum = _mm512_add_epi64(_mm512_loadu_si512(total + i), _mm512_cvtpd_epi64(exact));
        _mm512_storeu_si512(total + i, sum);
    }
#endif
    for (; i < count; i++)
        total[i] += llrint(values[i] * scale);
}
