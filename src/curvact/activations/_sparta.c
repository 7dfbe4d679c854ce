/* Sparta on the CPU. Depthwise: x·sigmoid(z), z a depthwise 3×3 convolution of x with zeros around the image, and its gradients, in
one pass over each plane (N×C×H×W), or over some channels of an image (N×H×W×C), which stay in the cache. Any variant: x·sigmoid(z)
of given x and z, and its gradients, in one pass.

Built by _gate.py on first use. The file includes itself, once for float and once for double. A thread takes whole planes or images,
and the gradient of the weights is returned for each, so that no result depends on the number of threads. */

#ifndef REAL

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16 /* partial sums of a dot product; channels taken together */
#define ALIGNMENT (LANES * sizeof(double))

typedef struct {
    const void *x, *weight, *grad; /* grad may be null: then the value is wanted */
    void *out, *grad_weight;
    int64_t items, channels, rows, columns, next;
    int last, failed;
} Job;

#define CHUNK 4096 /* numbers that a thread takes at a time where x and z are given */

typedef struct {
    const void *x, *z, *grad; /* as above */
    void *out, *grad_z;
    int64_t count, next;
} Product;

#define REAL float
#define NAME(name) name##_float
#include "_sparta.c"
#undef REAL
#undef NAME

#define REAL double
#define NAME(name) name##_double
#define DOUBLE
#include "_sparta.c"

/* x, grad, out: N×C×H×W, or N×H×W×C if `last`. weight: C×9, or 9×C if `last`. grad null: out is the value. Otherwise out is the
   gradient of x, and grad_weight, (N·C)×9 or N×9×C, that of the weight for each plane or image.
   parallel: OpenMP's GOMP_parallel as torch loaded it, or null. Returns 0, or 1 where there is no memory. */
int curvact_sparta(int wide, int last, const void *x, const void *weight, const void *grad, void *out, void *grad_weight, int64_t n,
                   int64_t channels, int64_t rows, int64_t columns, int threads,
                   void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    Job job = {x, weight, grad, out, grad_weight, n * (last ? (channels + LANES - 1) / LANES : channels), channels, rows, columns, 0, last, 0};
    void (*work)(void *) = wide ? work_double : work_float;
    if (threads > job.items) threads = (int)job.items;
    if (threads > 1 && parallel)
        parallel(work, &job, (unsigned)threads, 0);
    else
        work(&job);
    return job.failed;
}

/* x, z, grad, out, grad_z: count numbers in one order. grad null: out is x·sigmoid(z). Otherwise out is the gradient of x, grad_z of z. */
void curvact_product(int wide, const void *x, const void *z, const void *grad, void *out, void *grad_z, int64_t count, int threads,
                     void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    Product job = {x, z, grad, out, grad_z, count, 0};
    void (*work)(void *) = wide ? multiply_double : multiply_float;
    const int64_t chunks = (count + CHUNK - 1) / CHUNK;
    if (threads > chunks) threads = (int)chunks;
    if (threads > 1 && parallel)
        parallel(work, &job, (unsigned)threads, 0);
    else
        work(&job);
}

#else /* ---- for one REAL ---- */

#define K(number) ((REAL)(number))

#ifdef DOUBLE
#define BITS int64_t
#define MANTISSA 52
#define BIAS 1023
#define ROUND 6755399441055744.0 /* 1.5·2⁵²: adding it leaves the nearest integer in the low bits */
#define CUT 700
#define TERMS 13
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#else
#define BITS int32_t
#define MANTISSA 23
#define BIAS 127
#define ROUND 12582912.0
#define CUT 86
#define TERMS 7
#define LN2_HIGH 0x1.62e400p-1
#define LN2_LOW 0x1.7f7d1cp-20
#endif

/* 1/(1 + e⁻ᶻ): |z| is cut at CUT, and the exponential is 2ⁿ times its Taylor series at a distance of at most ln(2)/2. */
static inline REAL NAME(sigmoid)(REAL z) {
    static const double inverse_factorials[] = {
        1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800,
        1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    REAL v = -z;
    v = v > K(CUT) ? K(CUT) : v;
    v = v < K(-CUT) ? K(-CUT) : v;
    REAL shifted = v * K(1.44269504088896340736) + K(ROUND);
    REAL n = shifted - K(ROUND);
    REAL y = (v - n * K(LN2_HIGH)) - n * K(LN2_LOW);
    REAL series = K(inverse_factorials[TERMS]);
    for (int k = TERMS - 1; k >= 0; k--) series = series * y + K(inverse_factorials[k]);
    BITS bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (BITS)((uint64_t)bits << MANTISSA) + ((BITS)BIAS << MANTISSA);
    REAL power;
    memcpy(&power, &bits, sizeof power);
    return K(1) / (K(1) + series * power);
}

static void NAME(multiply)(void *data) {
    Product *job = data;
    for (;;) {
        const int64_t start = __atomic_fetch_add(&job->next, CHUNK, __ATOMIC_RELAXED);
        if (start >= job->count) return;
        const int64_t some = job->count - start < CHUNK ? job->count - start : CHUNK;
        const REAL *restrict x = (const REAL *)job->x + start, *restrict z = (const REAL *)job->z + start;
        REAL *restrict out = (REAL *)job->out + start;
        if (!job->grad) {
            for (int64_t p = 0; p < some; p++) out[p] = x[p] * NAME(sigmoid)(z[p]);
            continue;
        }
        const REAL *restrict grad = (const REAL *)job->grad + start;
        REAL *restrict through = (REAL *)job->grad_z + start;
        for (int64_t p = 0; p < some; p++) {
            REAL s = NAME(sigmoid)(z[p]), straight = grad[p] * s;
            out[p] = straight;
            through[p] = x[p] * straight * (K(1) - s);
        }
    }
}

/* ---- a plane of N×C×H×W, in a frame of zeros: rows of columns + 2, so that one loop runs over all of it ---- */

static void NAME(framed)(const REAL *restrict from, REAL *restrict to, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + (i + 1) * (columns + 2) + 1, from + i * columns, (size_t)columns * sizeof(REAL));
}

static void NAME(unframed)(const REAL *restrict from, REAL *restrict to, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * columns, from + i * (columns + 2), (size_t)columns * sizeof(REAL));
}

/* out[p] = Σ w[3a+b]·in[p + a·stride + b] */
static void NAME(correlate)(const REAL *restrict in, const REAL *restrict w, REAL *restrict out, int64_t length, int64_t stride) {
    const REAL *r0 = in, *r1 = in + stride, *r2 = in + 2 * stride;
    for (int64_t p = 0; p < length; p++)
        out[p] = (w[0] * r0[p] + w[1] * r0[p + 1] + w[2] * r0[p + 2]) + (w[3] * r1[p] + w[4] * r1[p + 1] + w[5] * r1[p + 2]) +
                 (w[6] * r2[p] + w[7] * r2[p + 1] + w[8] * r2[p + 2]);
}

/* length, the pixels from the first to the last within the frame, is a multiple of LANES: what is beyond them is 0 in g and x. */
static void NAME(plane)(const Job *job, int64_t item, REAL *scratch, int64_t frame, int64_t length) {
    const int64_t rows = job->rows, columns = job->columns, stride = columns + 2, size = rows * columns;
    const REAL *w = (const REAL *)job->weight + 9 * (item % job->channels);
    REAL *x = scratch, *g = x + frame, *t = g + frame, *z = t + frame, *out = z + frame;
    NAME(framed)((const REAL *)job->x + item * size, x, rows, columns);
    NAME(correlate)(x, w, z, length, stride);
    const REAL *inside = x + stride + 1;
    if (!job->grad) {
        for (int64_t p = 0; p < length; p++) out[p] = inside[p] * NAME(sigmoid)(z[p]);
        NAME(unframed)(out, (REAL *)job->out + item * size, rows, columns);
        return;
    }
    NAME(framed)((const REAL *)job->grad + item * size, g, rows, columns);
    const REAL *grad = g + stride + 1;
    REAL *through = t + stride + 1;
    for (int64_t p = 0; p < length; p++) {
        REAL s = NAME(sigmoid)(z[p]), straight = grad[p] * s;
        through[p] = inside[p] * straight * (K(1) - s);
        z[p] = straight;
    }
    REAL flipped[9];
    for (int k = 0; k < 9; k++) flipped[k] = w[8 - k];
    NAME(correlate)(t, flipped, out, length, stride);
    for (int64_t p = 0; p < length; p++) out[p] += z[p];
    NAME(unframed)(out, (REAL *)job->out + item * size, rows, columns);
    for (int k = 0; k < 9; k++) {
        const REAL *shifted = x + (k / 3) * stride + k % 3;
        REAL sums[LANES] = {0}, total = 0;
        for (int64_t p = 0; p < length; p += LANES)
            for (int lane = 0; lane < LANES; lane++) sums[lane] += through[p + lane] * shifted[p + lane];
        for (int lane = 0; lane < LANES; lane++) total += sums[lane];
        ((REAL *)job->grad_weight)[9 * item + k] = total;
    }
}

/* ---- LANES channels of an image of N×H×W×C, in a frame of zeros too ---- */

typedef REAL NAME(lanes) __attribute__((vector_size(LANES * sizeof(REAL)), may_alias));

static void NAME(pixels)(const REAL *from, REAL *to, int64_t rows, int64_t columns, int64_t channels, int64_t some) {
    for (int64_t i = 0; i < rows; i++) {
        REAL *row = to + ((i + 1) * (columns + 2) + 1) * LANES;
        for (int64_t j = 0; j < columns; j++, from += channels, row += LANES)
            if (some == LANES)
                memcpy(row, from, LANES * sizeof(REAL));
            else
                memcpy(row, from, (size_t)some * sizeof(REAL));
    }
}

static void NAME(pixels_back)(const REAL *from, REAL *to, int64_t rows, int64_t columns, int64_t channels, int64_t some) {
    for (int64_t i = 0; i < rows; i++) {
        const REAL *row = from + i * (columns + 2) * LANES;
        for (int64_t j = 0; j < columns; j++, to += channels, row += LANES)
            if (some == LANES)
                memcpy(to, row, LANES * sizeof(REAL));
            else
                memcpy(to, row, (size_t)some * sizeof(REAL));
    }
}

static void NAME(correlate_lanes)(const NAME(lanes) *restrict in, const NAME(lanes) *restrict w, NAME(lanes) *restrict out,
                                  int64_t length, int64_t stride) {
    const NAME(lanes) *r0 = in, *r1 = in + stride, *r2 = in + 2 * stride;
    for (int64_t p = 0; p < length; p++)
        out[p] = (w[0] * r0[p] + w[1] * r0[p + 1] + w[2] * r0[p + 2]) + (w[3] * r1[p] + w[4] * r1[p + 1] + w[5] * r1[p + 2]) +
                 (w[6] * r2[p] + w[7] * r2[p + 1] + w[8] * r2[p + 2]);
}

/* item: an image and LANES of its channels, or the rest of them. */
static void NAME(image)(const Job *job, int64_t item, REAL *scratch, int64_t frame) {
    const int64_t rows = job->rows, columns = job->columns, channels = job->channels, stride = columns + 2;
    const int64_t length = rows * stride - 2, blocks = (channels + LANES - 1) / LANES, first = item % blocks * LANES;
    const int64_t some = channels - first < LANES ? channels - first : LANES;
    const int64_t start = item / blocks * rows * columns * channels + first, inside = (stride + 1) * LANES;
    REAL *x = scratch, *g = x + frame, *t = g + frame, *z = t + frame, *out = z + frame;
    NAME(lanes) w[9], flipped[9];
    memset(w, 0, sizeof w);
    for (int k = 0; k < 9; k++)
        memcpy(&w[k], (const REAL *)job->weight + k * channels + first, (size_t)some * sizeof(REAL));
    NAME(pixels)((const REAL *)job->x + start, x, rows, columns, channels, some);
    NAME(correlate_lanes)((NAME(lanes) *)x, w, (NAME(lanes) *)z, length, stride);
    if (!job->grad) {
        for (int64_t p = 0; p < length * LANES; p++) out[p] = x[inside + p] * NAME(sigmoid)(z[p]);
        NAME(pixels_back)(out, (REAL *)job->out + start, rows, columns, channels, some);
        return;
    }
    NAME(pixels)((const REAL *)job->grad + start, g, rows, columns, channels, some);
    for (int64_t p = 0; p < length * LANES; p++) {
        REAL s = NAME(sigmoid)(z[p]), straight = g[inside + p] * s;
        t[inside + p] = x[inside + p] * straight * (K(1) - s);
        z[p] = straight;
    }
    for (int k = 0; k < 9; k++) flipped[k] = w[8 - k];
    NAME(correlate_lanes)((NAME(lanes) *)t, flipped, (NAME(lanes) *)out, length, stride);
    for (int64_t p = 0; p < length * LANES; p++) out[p] += z[p];
    NAME(pixels_back)(out, (REAL *)job->out + start, rows, columns, channels, some);
    const NAME(lanes) *through = (NAME(lanes) *)(t + inside), *r0 = (NAME(lanes) *)x, *r1 = r0 + stride, *r2 = r1 + stride;
    NAME(lanes) sums[9];
    memset(sums, 0, sizeof sums);
    for (int64_t p = 0; p < length; p++) {
        const NAME(lanes) v = through[p];
        sums[0] += v * r0[p], sums[1] += v * r0[p + 1], sums[2] += v * r0[p + 2];
        sums[3] += v * r1[p], sums[4] += v * r1[p + 1], sums[5] += v * r1[p + 2];
        sums[6] += v * r2[p], sums[7] += v * r2[p + 1], sums[8] += v * r2[p + 2];
    }
    REAL *to = (REAL *)job->grad_weight + 9 * channels * (item / blocks) + first;
    for (int k = 0; k < 9; k++) memcpy(to + k * channels, &sums[k], (size_t)some * sizeof(REAL));
}

static void NAME(work)(void *data) {
    Job *job = data;
    const int64_t stride = job->columns + 2, pixels = job->last ? LANES : 1;
    const int64_t length = (job->rows * stride + LANES - 1) / LANES * LANES;
    const int64_t frame = (length + 2 * stride + 2 + LANES) / LANES * LANES * pixels;
    const size_t bytes = (size_t)(5 * frame) * sizeof(REAL);
    REAL *scratch = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (!scratch) {
        job->failed = 1;
        return;
    }
    memset(scratch, 0, bytes);
    for (;;) {
        int64_t item = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (item >= job->items) break;
        if (job->last)
            NAME(image)(job, item, scratch, frame);
        else
            NAME(plane)(job, item, scratch, frame, length);
    }
    free(scratch);
}

#undef K
#undef BITS
#undef MANTISSA
#undef BIAS
#undef ROUND
#undef CUT
#undef TERMS
#undef LN2_HIGH
#undef LN2_LOW

#endif
