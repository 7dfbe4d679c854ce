/* 3 x 3 convolution of stride 1 by Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, arXiv 1509.09308): a quarter of the
   multiplications of the direct sum, in fp32.

   x: count x height x width x in. gate: as x, or null; x counts as 0 where it is not above 0. weight: 36 x in x outs, G g G' of every filter.
   bias: outs, or null. out: count x (height + 2 padding - 2) x (width + 2 padding - 2) x outs. added: as out, or null; added to the result,
   then what is below 0 becomes 0 if relu. in and outs are multiples of 16. Every tile is computed by itself: neither the other images nor
   the number of threads alter a bit of it. */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, WIDE = 12, NARROW = 24 }; /* tiles at once, by two vectors of outputs or by one: what fits the registers */
#elif defined(__AVX2__) && defined(__FMA__)
enum { LANES = 8, WIDE = 6, NARROW = 12 };
#else
#error "made for AVX2 and AVX-512"
#endif

enum { BLOCK = 16, SPOTS = 36, TILES = 48, PAD = 16 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef int32_t mask __attribute__((vector_size(4 * LANES)));

typedef struct {
    const float *x, *gate, *weight, *bias, *added;
    float *out, *scratch;
    int64_t height, width, in, outs, padding, down, across, tiles;
    int relu;
    int64_t next, share;
} Job;

static int64_t v_stride(int64_t in) { return TILES * in + PAD; }
static int64_t m_stride(int64_t outs) { return TILES * outs + PAD; }

/* Floats of scratch a thread needs. */
int64_t curvact_winograd_scratch(int64_t in, int64_t outs) { return SPOTS * (v_stride(in) + m_stride(outs)) + in; }

static inline __attribute__((always_inline)) void before(const vec d[6], vec *to, int step) {
    const vec a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
    to[0 * step] = 4 * d[0] - 5 * d[2] + d[4];
    to[1 * step] = a + b;
    to[2 * step] = a - b;
    to[3 * step] = c + e;
    to[4 * step] = c - e;
    to[5 * step] = 4 * d[1] - 5 * d[3] + d[5];
}

static inline __attribute__((always_inline)) void after(const vec m[6], vec *to, int step) {
    const vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
    to[0 * step] = m[0] + a + c;
    to[1 * step] = b + 2 * d;
    to[2 * step] = a + 4 * c;
    to[3 * step] = b + 8 * d + m[5];
}

static inline __attribute__((always_inline)) void enter(const Job *job, int64_t tile, const float *zeros, float *v, const int gated) {
    const int64_t image = tile / (job->down * job->across), place = tile % (job->down * job->across);
    const int64_t top = place / job->across * 4 - job->padding, left = place % job->across * 4 - job->padding;
    const float *from[SPOTS], *gate[SPOTS];
    for (int r = 0; r < 6; r++)
        for (int c = 0; c < 6; c++) {
            const int64_t y = top + r, z = left + c;
            const int inside = y >= 0 && y < job->height && z >= 0 && z < job->width;
            const int64_t at = ((image * job->height + y) * job->width + z) * job->in;
            from[6 * r + c] = inside ? job->x + at : zeros;
            if (gated)
                gate[6 * r + c] = inside ? job->gate + at : zeros;
        }
    const int64_t stride = v_stride(job->in);
    for (int64_t channel = 0; channel < job->in; channel += LANES) {
        vec half[SPOTS], whole[6];
        float *to = v + channel / BLOCK * TILES * BLOCK + channel % BLOCK;
        for (int c = 0; c < 6; c++) {
            vec d[6];
            for (int r = 0; r < 6; r++) {
                d[r] = *(const vec *)(from[6 * r + c] + channel);
                if (gated)
                    d[r] = (vec)((mask)d[r] & (mask)(*(const vec *)(gate[6 * r + c] + channel) > (vec){0}));
            }
            before(d, half + c, 6);
        }
        for (int r = 0; r < 6; r++) {
            before(half + 6 * r, whole, 1);
            for (int c = 0; c < 6; c++)
                *(vec *)(to + (6 * r + c) * stride) = whole[c];
        }
    }
}

static void leave(const Job *job, int64_t tile, const float *m) {
    const int64_t image = tile / (job->down * job->across), place = tile % (job->down * job->across);
    const int64_t height = job->height + 2 * job->padding - 2, width = job->width + 2 * job->padding - 2;
    const int64_t top = place / job->across * 4, left = place % job->across * 4;
    const int64_t rows = height - top < 4 ? height - top : 4, columns = width - left < 4 ? width - left : 4;
    const int64_t stride = m_stride(job->outs);
    for (int64_t channel = 0; channel < job->outs; channel += LANES) {
        vec half[24], line[4], bias = {0};
        if (job->bias)
            bias = *(const vec *)(job->bias + channel);
        for (int c = 0; c < 6; c++) {
            vec d[6];
            for (int r = 0; r < 6; r++)
                d[r] = *(const vec *)(m + (6 * r + c) * stride + channel);
            after(d, half + c, 6);
        }
        const int64_t start = ((image * height + top) * width + left) * job->outs + channel;
        for (int r = 0; r < rows; r++) {
            after(half + 6 * r, line, 1);
            for (int c = 0; c < columns; c++) {
                const int64_t at = start + (r * width + c) * job->outs;
                vec sum = line[c] + bias;
                if (job->added)
                    sum += *(const vec *)(job->added + at);
                if (job->relu)
                    sum = (vec)((mask)sum & ~(mask)(sum < (vec){0}));
                *(vec *)(job->out + at) = sum;
            }
        }
    }
}

/* m[t][0 ... columns * LANES) = sum over k of v[t][k] u[k][...] for `tiles` tiles. v: in / BLOCK slabs of TILES x BLOCK. */
static inline __attribute__((always_inline)) void product(const float *v, const float *u, float *m, int64_t in, int64_t outs,
                                                          const int tiles, const int columns) {
    vec sum[NARROW];
#pragma GCC unroll 24
    for (int i = 0; i < tiles * columns; i++)
        sum[i] = (vec){0};
    for (int64_t block = 0; block < in / BLOCK; block++, v += TILES * BLOCK)
        for (int k = 0; k < BLOCK; k++, u += outs) {
            vec right[2];
#pragma GCC unroll 2
            for (int j = 0; j < columns; j++)
                right[j] = *(const vec *)(u + j * LANES);
#pragma GCC unroll 24
            for (int t = 0; t < tiles; t++) {
                const vec left = v[t * BLOCK + k] - (vec){0};
#pragma GCC unroll 2
                for (int j = 0; j < columns; j++)
                    sum[t * columns + j] += left * right[j];
            }
        }
#pragma GCC unroll 24
    for (int t = 0; t < tiles; t++)
#pragma GCC unroll 2
        for (int j = 0; j < columns; j++)
            *(vec *)(m + t * outs + j * LANES) = sum[t * columns + j];
}

static void wide(const float *v, const float *u, float *m, int64_t in, int64_t outs, int64_t tiles) {
    for (; tiles >= WIDE; tiles -= WIDE, v += WIDE * BLOCK, m += WIDE * outs)
        product(v, u, m, in, outs, WIDE, 2);
    for (; tiles >= 3; tiles -= 3, v += 3 * BLOCK, m += 3 * outs)
        product(v, u, m, in, outs, 3, 2);
    for (; tiles >= 1; tiles -= 1, v += BLOCK, m += outs)
        product(v, u, m, in, outs, 1, 2);
}

static void narrow(const float *v, const float *u, float *m, int64_t in, int64_t outs, int64_t tiles) {
    for (; tiles >= NARROW; tiles -= NARROW, v += NARROW * BLOCK, m += NARROW * outs)
        product(v, u, m, in, outs, NARROW, 1);
    for (; tiles >= 4; tiles -= 4, v += 4 * BLOCK, m += 4 * outs)
        product(v, u, m, in, outs, 4, 1);
    for (; tiles >= 1; tiles -= 1, v += BLOCK, m += outs)
        product(v, u, m, in, outs, 1, 1);
}

static void work(void *content) {
    Job *job = content;
    const int64_t share = __atomic_fetch_add(&job->share, 1, __ATOMIC_RELAXED); /* this thread's scratch */
    float *v = job->scratch + share * curvact_winograd_scratch(job->in, job->outs);
    float *m = v + SPOTS * v_stride(job->in), *zeros = m + SPOTS * m_stride(job->outs);
    memset(zeros, 0, sizeof(float) * (size_t)job->in);
    for (;;) {
        const int64_t first = __atomic_fetch_add(&job->next, TILES, __ATOMIC_RELAXED);
        if (first >= job->tiles)
            return;
        const int64_t here = job->tiles - first < TILES ? job->tiles - first : TILES;
        for (int64_t t = 0; t < here; t++)
            if (job->gate)
                enter(job, first + t, zeros, v + t * BLOCK, 1);
            else
                enter(job, first + t, zeros, v + t * BLOCK, 0);
        for (int spot = 0; spot < SPOTS; spot++) {
            const float *left = v + spot * v_stride(job->in), *right = job->weight + spot * job->in * job->outs;
            float *to = m + spot * m_stride(job->outs);
            int64_t channel = 0;
            for (; channel + 2 * LANES <= job->outs; channel += 2 * LANES)
                wide(left, right + channel, to + channel, job->in, job->outs, here);
            if (channel < job->outs)
                narrow(left, right + channel, to + channel, job->in, job->outs, here);
        }
        for (int64_t t = 0; t < here; t++)
            leave(job, first + t, m + t * job->outs);
    }
}

/* scratch: `threads` times what curvact_winograd_scratch says. parallel: OpenMP's GOMP_parallel as torch loaded it, or null. */
void curvact_winograd(const float *x, const float *gate, const float *weight, const float *bias, const float *added, float *out,
                      float *scratch, int64_t count, int64_t height, int64_t width, int64_t in, int64_t outs, int64_t padding, int relu,
                      int threads, void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    const int64_t down = (height + 2 * padding + 1) / 4, across = (width + 2 * padding + 1) / 4;
    Job job = {x, gate, weight, bias, added, out, scratch, height, width, in, outs, padding, down, across, count * down * across, relu, 0, 0};
    const int64_t blocks = (job.tiles + TILES - 1) / TILES;
    if (threads > blocks)
        threads = (int)blocks;
    if (threads > 1 && parallel)
        parallel(work, &job, (unsigned)threads, 0);
    else
        work(&job);
}
