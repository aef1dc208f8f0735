/* Vectors of floats: 8 with AVX2, 16 with AVX-512.
 *
 * Code for only one of the two is in this file, code for AVX512-FP16 in products.h; everything else works with any LANES.
 */
#ifndef SEGWRIGHT_VECTORS_H
#define SEGWRIGHT_VECTORS_H

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
enum { LANES = 16 }; /* floats in a vector */
#else
enum { LANES = 8 };
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef float Eight __attribute__((vector_size(32)));

enum { LINE = 16 }; /* floats in a line of the cache */

INLINE Lanes load(const float *from) { return (Lanes) * (const Unaligned *)from; }
INLINE void store(float *to, Lanes value) { *(Unaligned *)to = (Unaligned)value; }

/* Load bfloat16. */
INLINE Lanes load_bf16(const uint16_t *from) {
#ifdef __AVX512F__
    return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#else
    return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#endif
}

/* Store as bfloat16, rounded to nearest, ties to even. */
INLINE void store_bf16(uint16_t *to, Lanes value) {
    Bits bits = (Bits)value, words = (bits + ((bits >> 16) & 1) + 0x7fff) >> 16;
#ifdef __AVX512F__
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)words));
#else
    __m256i packed = _mm256_packus_epi32((__m256i)words, (__m256i)words); /* packs each 128-bit lane by itself */
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#endif
}

/* LeakyReLU: multiply by `slope` where the sign is negative. */
INLINE Lanes leaky(Lanes value, float slope) {
#ifdef __AVX512F__
    __m512 number = (__m512)value;
    return (Lanes)_mm512_mask_mul_ps(number, _mm512_movepi32_mask((__m512i)value), number, _mm512_set1_ps(slope));
#else
    return (Lanes)_mm256_blendv_ps((__m256)value, (__m256)(value * slope), (__m256)value);
#endif
}

/* Return a vector of 8 floats; of 16, add the upper 8 to the lower. */
INLINE Eight fold_to_eight(Lanes v) {
#ifdef __AVX512F__
    return (Eight)_mm512_castps512_ps256((__m512)v) + (Eight)_mm512_extractf32x8_ps((__m512)v, 1);
#else
    return (Eight)v;
#endif
}

/* Return the sum of the lanes of each of eight vectors. */
INLINE Eight sums_of(const Lanes *v) {
    __m256 e[8];
    for (int i = 0; i < 8; i++) e[i] = (__m256)fold_to_eight(v[i]);
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(e[0], e[1]), _mm256_hadd_ps(e[2], e[3]));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(e[4], e[5]), _mm256_hadd_ps(e[6], e[7]));
    return (Eight)_mm256_permute2f128_ps(low, high, 0x20) + (Eight)_mm256_permute2f128_ps(low, high, 0x31);
}

#endif
