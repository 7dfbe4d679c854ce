/* Elementwise activations on the CPU: σ(x) and σ'(x), each optionally times a gradient, in loops that a compiler vectorises.

Built by native.py on first use. With u = αx, a = |u|, e = exp(−a) and q = e/(1+e), a family is written as

    value: relu(x) + r(u)/α        slope: h(u) for u < 0, 1 − h(u) for u > 0        [derived]

where r and h fade out for large a. Both are even for every family here but Mish and the power gate. Every number passes through
the same loop over a block of fixed length, the last block padded, so that no result depends on an element's place, on the size of
the tensor or on the number of threads. Half precision is computed in float and rounded once.

The file includes itself, once for float and once for double. The polynomials are macros from polynomials.py. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 256
#define PORTION 32768 /* elements a thread takes at a time, a multiple of BLOCK */
#define ALIGNED __attribute__((aligned(64)))

enum { RCT, SWISH, SQUAREPLUS, GELU, MISH, POWER, FAMILIES };
enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

#define REAL float
#define BITS uint32_t
#define NAME(name) name##_float
#include "native.c"
#undef REAL
#undef BITS
#undef NAME

#define REAL double
#define BITS uint64_t
#define NAME(name) name##_double
#define DOUBLE
#include "native.c"

/* ---- half precision, by its bits ---- */

static inline float from_bits(uint32_t bits) {
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static inline uint32_t to_bits(float value) {
    uint32_t out;
    memcpy(&out, &value, sizeof out);
    return out;
}

static inline float from_bfloat16(uint16_t half) { return from_bits((uint32_t)half << 16); }

static inline uint16_t to_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

static inline float from_float16(uint16_t half) {
    uint32_t exponent = half & 0x7c00, magnitude = (uint32_t)(half & 0x7fff) << 13;
    uint32_t normal = magnitude + (112u << 23), special = magnitude + (224u << 23);
    uint32_t subnormal = to_bits(from_bits(magnitude + (113u << 23)) - from_bits(113u << 23));
    uint32_t bits = exponent == 0 ? subnormal : exponent == 0x7c00 ? special : normal;
    return from_bits(bits | (uint32_t)(half & 0x8000) << 16);
}

static inline uint16_t to_float16(float value) {
    uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
    uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    uint32_t half = magnitude < 113u << 23 ? subnormal : magnitude >= 143u << 23 ? special : normal;
    return (uint16_t)(half | sign);
}

/* ---- running a kernel over a tensor ---- */

typedef struct {
    const char *x, *grad; /* grad may be null */
    char *out;
    int64_t size, next;
    int dtype, width, power;
    kernel_float *single;
    kernel_double *wide;
    double alpha, at_zero;
} Job;

static void load(int dtype, const char *from, float *to) {
    const uint16_t *half = (const uint16_t *)from;
    if (dtype == FLOAT32) memcpy(to, from, BLOCK * sizeof(float));
    if (dtype == BFLOAT16)
        for (int i = 0; i < BLOCK; i++) to[i] = from_bfloat16(half[i]);
    if (dtype == FLOAT16)
        for (int i = 0; i < BLOCK; i++) to[i] = from_float16(half[i]);
}

static void store(int dtype, const float *restrict from, char *restrict to) {
    uint16_t *half = (uint16_t *)to;
    if (dtype == FLOAT32) memcpy(to, from, BLOCK * sizeof(float));
    if (dtype == BFLOAT16)
        for (int i = 0; i < BLOCK; i++) half[i] = to_bfloat16(from[i]);
    if (dtype == FLOAT16)
        for (int i = 0; i < BLOCK; i++) half[i] = to_float16(from[i]);
}

static void block(const Job *job, const char *x, const char *grad, char *out) {
    if (job->dtype == FLOAT64) {
        ALIGNED double in[BLOCK], result[BLOCK];
        memcpy(in, x, sizeof in);
        job->wide(in, result, job->alpha, 1 / job->alpha, job->at_zero, job->power);
        if (grad) {
            memcpy(in, grad, sizeof in);
            for (int i = 0; i < BLOCK; i++) result[i] *= in[i];
        }
        memcpy(out, result, sizeof result);
    } else {
        ALIGNED float in[BLOCK], result[BLOCK];
        float alpha = (float)job->alpha;
        load(job->dtype, x, in);
        job->single(in, result, alpha, 1 / alpha, (float)job->at_zero, job->power);
        if (grad) {
            load(job->dtype, grad, in);
            for (int i = 0; i < BLOCK; i++) result[i] *= in[i];
        }
        store(job->dtype, result, out);
    }
}

static void work(void *data) {
    Job *job = data;
    const int64_t width = job->width;
    for (;;) {
        int64_t start = __atomic_fetch_add(&job->next, PORTION, __ATOMIC_RELAXED);
        int64_t end = start + PORTION < job->size ? start + PORTION : job->size;
        if (start >= job->size) return;
        for (; start + BLOCK <= end; start += BLOCK)
            block(job, job->x + start * width, job->grad ? job->grad + start * width : 0, job->out + start * width);
        if (start < end) {
            ALIGNED char x[BLOCK * 8] = {0}, grad[BLOCK * 8] = {0}, out[BLOCK * 8];
            size_t bytes = (size_t)((end - start) * width);
            memcpy(x, job->x + start * width, bytes);
            if (job->grad) memcpy(grad, job->grad + start * width, bytes);
            block(job, x, job->grad ? grad : 0, out);
            memcpy(job->out + start * width, out, bytes);
        }
    }
}

/* parallel: OpenMP's GOMP_parallel as torch loaded it, so that there is one pool of threads, or null. Returns 0, or 1 if unknown. */
int curvact_run(int family, int parameter, int order, int dtype, int centered, const void *x, const void *grad, void *out,
                int64_t size, double alpha, int threads, void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    static const int widths[] = {4, 8, 2, 2};
    if (family < 0 || family >= FAMILIES || order < 0 || order > 1 || dtype < 0 || dtype > FLOAT16) return 1;
    if (family == RCT && (parameter < 0 || parameter > 3)) return 1;
    int row = family == RCT ? parameter : 3 + family;
    Job job = {x, grad, out, size, 0, dtype, widths[dtype], parameter, kernels_float[row][order], kernels_double[row][order], alpha, 0};
    if (centered && order == 0) { /* σ(0) by the same loop, so that σ(0) − σ(0) is 0 */
        union {
            double wide[BLOCK];
            float single[BLOCK];
        } zeros = {{0}}, values;
        job.dtype = dtype == FLOAT64 ? FLOAT64 : FLOAT32;
        block(&job, (const char *)&zeros, 0, (char *)&values);
        job.at_zero = dtype == FLOAT64 ? values.wide[0] : values.single[0];
        job.dtype = dtype;
    }
    int64_t portions = (size + PORTION - 1) / PORTION;
    if (threads > portions) threads = (int)portions;
    if (threads > 1 && parallel)
        parallel(work, &job, (unsigned)threads, 0);
    else
        work(&job);
    return 0;
}

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *curvact_describe(void) {
    return
#if defined(__clang__)
        "clang " TEXT(__clang_major__) "." TEXT(__clang_minor__)
#elif defined(__GNUC__)
        "gcc " TEXT(__GNUC__) "." TEXT(__GNUC_MINOR__)
#else
        "cc"
#endif
#if defined(__AVX512F__)
        ", avx512";
#elif defined(__AVX2__)
        ", avx2";
#elif defined(__AVX__)
        ", avx";
#elif defined(__ARM_NEON)
        ", neon";
#else
        ", baseline";
#endif
}

#else /* ---- for one REAL ---- */

#define K(number) ((REAL)(number))

#ifdef DOUBLE
#define SQRT __builtin_sqrt
#define MANTISSA 52
#define BIAS 1023
#define ROUND 6755399441055744.0 /* 1.5·2⁵²: adding it leaves the nearest integer in the low bits */
#define CUT 704
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define WIDE 1e150
#else
#define SQRT __builtin_sqrtf
#define MANTISSA 23
#define BIAS 127
#define ROUND 12582912.0
#define CUT 84
#define LN2_HIGH 0x1.62e400p-1
#define LN2_LOW 0x1.7f7d1cp-20
#define WIDE 1e18
#endif

typedef void NAME(kernel)(const REAL *restrict x, REAL *restrict out, REAL alpha, REAL inverse, REAL at_zero, int power);

/* The smaller one; NaN where a is NaN. */
static inline REAL NAME(cut)(REAL a, REAL limit) { return limit < a ? limit : a; }

static inline REAL NAME(absolute)(REAL u) { return u < 0 ? -u : u; }

/* e⁻ᵃ for 0 ≤ a < limit, 0 beyond, NaN for NaN. limit is at most CUT: numbers so small that powers of them leave the normal range
   would slow the processor down many times. */
static inline REAL NAME(decay)(REAL a, REAL limit) {
    REAL b = NAME(cut)(a, limit);
    REAL shifted = K(ROUND) - b * K(1.44269504088896340736);
    REAL n = shifted - K(ROUND);
    REAL y = (-b - n * K(LN2_HIGH)) - n * K(LN2_LOW);
    BITS bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << MANTISSA) + ((BITS)BIAS << MANTISSA);
    REAL power_of_two;
    memcpy(&power_of_two, &bits, sizeof power_of_two);
    return a >= limit ? K(0) : (K(1) + (y + y * y * NAME(polynomial_exponential)(y))) * power_of_two;
}

/* sigmoid(−a). */
static inline REAL NAME(gate)(REAL a, REAL limit) {
    REAL e = NAME(decay)(a, limit);
    return e / (K(1) + e);
}

/* One smoothstep pass. */
static inline REAL NAME(pass)(REAL g) { return g * g * (K(3) - K(2) * g); }

/* ---- r and h of the families; `low` says that u < 0 ---- */

static inline REAL NAME(r_softplus)(REAL a, int low) {
    REAL e = NAME(decay)(a, CUT);
    return e * NAME(polynomial_softplus)(e - K(0.5));
}

static inline REAL NAME(h_softplus)(REAL a, int low) { return NAME(gate)(a, CUT); }

/* RCT-AF: φ(−a) = q^(2^β) times a smooth factor, q = sigmoid(−a): nothing cancels. */
static inline REAL NAME(r_rct1)(REAL a, int low) {
    REAL q = NAME(gate)(a, CUT / 2);
    return NAME(polynomial_rct1)(q - K(0.25)) * (q * q);
}

static inline REAL NAME(r_rct2)(REAL a, int low) {
    REAL q = NAME(gate)(a, CUT / 4), square = q * q;
    return NAME(polynomial_rct2)(q - K(0.25)) * (square * square);
}

static inline REAL NAME(r_rct3)(REAL a, int low) {
    REAL q = NAME(gate)(a, CUT / 8), square = q * q, fourth = square * square;
    return NAME(polynomial_rct3)(q - K(0.25)) * (fourth * fourth);
}

static inline REAL NAME(h_rct1)(REAL a, int low) { return NAME(pass)(NAME(gate)(a, CUT / 2)); }
static inline REAL NAME(h_rct2)(REAL a, int low) { return NAME(pass)(NAME(pass)(NAME(gate)(a, CUT / 4))); }
static inline REAL NAME(h_rct3)(REAL a, int low) { return NAME(pass)(NAME(pass)(NAME(pass)(NAME(gate)(a, CUT / 8)))); }

static inline REAL NAME(r_swish)(REAL a, int low) { return -NAME(cut)(a, CUT) * NAME(gate)(a, CUT); }

static inline REAL NAME(h_swish)(REAL a, int low) {
    REAL q = NAME(gate)(a, CUT);
    return q * (K(1) - NAME(cut)(a, CUT) * (K(1) - q));
}

static inline REAL NAME(r_squareplus)(REAL a, int low) {
    REAL b = NAME(cut)(a, K(WIDE));
    return K(0.5) / (SQRT(b * b + K(1)) + a);
}

static inline REAL NAME(h_squareplus)(REAL a, int low) {
    REAL b = NAME(cut)(a, K(WIDE)), root = SQRT(b * b + K(1));
    return K(0.5) / (root * (root + a));
}

/* GELU: Φ(−a) = e^(−a²/2) times a smooth factor, Φ the normal distribution. */
static inline REAL NAME(normal)(REAL a) { return NAME(polynomial_normal)(K(4) / (K(4) + a) - K(0.625)); }

static inline REAL NAME(r_gelu)(REAL a, int low) {
    REAL b = NAME(cut)(a, 40);
    return -b * (NAME(decay)(K(0.5) * b * b, CUT - 8) * NAME(normal)(b));
}

static inline REAL NAME(h_gelu)(REAL a, int low) {
    REAL b = NAME(cut)(a, 40);
    return NAME(decay)(K(0.5) * b * b, CUT - 8) * (NAME(normal)(b) - b * K(0.398942280401432677940));
}

/* Mish: 1 − tanh(softplus(a)) = n/d for u > 0, tanh(softplus(−a)) = n/d for u < 0. */
static inline REAL NAME(r_mish)(REAL a, int low) {
    REAL e = NAME(decay)(a, CUT / 2), square = e * e, twice = e + e;
    REAL n = low ? square + twice : square + square;
    REAL d = low ? K(2) + twice + square : K(1) + twice + (square + square);
    return -NAME(cut)(a, CUT / 2) * (n / d);
}

static inline REAL NAME(h_mish)(REAL a, int low) {
    REAL e = NAME(decay)(a, CUT / 2), square = e * e, twice = e + e;
    REAL n = low ? square + twice : square + square;
    REAL d = low ? K(2) + twice + square : K(1) + twice + (square + square);
    REAL m = K(4) * (low ? e + square : square + square * e);
    return (n * d - NAME(cut)(a, CUT / 2) * m) / (d * d);
}

#define FAMILY(family)                                                                                                        \
    static void NAME(value_##family)(const REAL *restrict x, REAL *restrict out, REAL alpha, REAL inverse, REAL at_zero,      \
                                     int power) {                                                                             \
        for (int i = 0; i < BLOCK; i++) {                                                                                     \
            REAL u = x[i] * alpha;                                                                                            \
            out[i] = (x[i] > 0 ? x[i] : K(0)) + NAME(r_##family)(NAME(absolute)(u), u < 0) * inverse - at_zero;               \
        }                                                                                                                     \
    }                                                                                                                         \
    static void NAME(slope_##family)(const REAL *restrict x, REAL *restrict out, REAL alpha, REAL inverse, REAL at_zero,      \
                                     int power) {                                                                             \
        for (int i = 0; i < BLOCK; i++) {                                                                                     \
            REAL u = x[i] * alpha, h = NAME(h_##family)(NAME(absolute)(u), u < 0);                                            \
            out[i] = u < 0 ? h : K(1) - h;                                                                                    \
        }                                                                                                                     \
    }

FAMILY(softplus)
FAMILY(rct1)
FAMILY(rct2)
FAMILY(rct3)
FAMILY(swish)
FAMILY(squareplus)
FAMILY(gelu)
FAMILY(mish)

/* Power gate: relu(x) + [log(1 + e) − Σ sᵏ/k]/α, k from 1 to power − 1. */
static void NAME(value_power)(const REAL *restrict x, REAL *restrict out, REAL alpha, REAL inverse, REAL at_zero, int power) {
    ALIGNED REAL s[BLOCK], sum[BLOCK];
    for (int i = 0; i < BLOCK; i++) {
        REAL u = x[i] * alpha, e = NAME(decay)(NAME(absolute)(u), CUT);
        out[i] = e * NAME(polynomial_softplus)(e - K(0.5));
        s[i] = (u < 0 ? e : K(1)) / (K(1) + e);
        sum[i] = 0;
    }
    for (int k = power - 1; k > 0; k--) {
        REAL term = K(1) / (REAL)k;
        for (int i = 0; i < BLOCK; i++) sum[i] = (sum[i] + term) * s[i];
    }
    for (int i = 0; i < BLOCK; i++) out[i] = (x[i] > 0 ? x[i] : K(0)) + (out[i] - sum[i]) * inverse - at_zero;
}

static void NAME(slope_power)(const REAL *restrict x, REAL *restrict out, REAL alpha, REAL inverse, REAL at_zero, int power) {
    ALIGNED REAL s[BLOCK];
    REAL lowest = -K(CUT) / (REAL)power;
    for (int i = 0; i < BLOCK; i++) {
        REAL u = x[i] * alpha, e = NAME(decay)(NAME(absolute)(u), CUT);
        out[i] = s[i] = (u <= lowest ? K(0) : u < 0 ? e : K(1)) / (K(1) + e);
    }
    for (int k = 1; k < power; k++)
        for (int i = 0; i < BLOCK; i++) out[i] *= s[i];
}

static NAME(kernel) *const NAME(kernels)[][2] = {
    {NAME(value_softplus), NAME(slope_softplus)},     {NAME(value_rct1), NAME(slope_rct1)},
    {NAME(value_rct2), NAME(slope_rct2)},             {NAME(value_rct3), NAME(slope_rct3)},
    {NAME(value_swish), NAME(slope_swish)},           {NAME(value_squareplus), NAME(slope_squareplus)},
    {NAME(value_gelu), NAME(slope_gelu)},             {NAME(value_mish), NAME(slope_mish)},
    {NAME(value_power), NAME(slope_power)},
};

#undef K
#undef SQRT
#undef MANTISSA
#undef BIAS
#undef ROUND
#undef CUT
#undef LN2_HIGH
#undef LN2_LOW
#undef WIDE
#undef FAMILY

#endif
