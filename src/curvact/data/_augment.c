/* Chosen images, each flipped and shifted, as floats in [0, 1]: one pass over memory.

   images: uint8, N x channels x height x width. index: of the count images wanted. down, right: shift in pixels, zeros come in. flip: left to
   right, before the shift. out: float, count x channels x height x width. value / 255 is correctly rounded, as torch rounds it. */
#include <stdint.h>
#include <string.h>

typedef struct {
    const uint8_t *images;
    const int64_t *index, *down, *right;
    const uint8_t *flip;
    float *out;
    int64_t channels, height, width;
} Job;

/* Rows are put together as bytes, a block of them at a time, then converted in one loop: a loop a row would spend half its time at row ends. */
enum { BLOCK = 4096 };

static void one(const Job *job, int64_t i) {
    const int64_t height = job->height, width = job->width;
    const int64_t down = job->down[i], right = job->right[i];
    const int64_t from = right > 0 ? right : 0, length = width - (right > 0 ? right : -right);
    const int64_t rows = BLOCK / width;
    uint8_t block[BLOCK];
    for (int64_t c = 0; c < job->channels; c++) {
        const uint8_t *source = job->images + (job->index[i] * job->channels + c) * height * width;
        float *out = job->out + (i * job->channels + c) * height * width;
        for (int64_t first = 0; first < height; first += rows) {
            const int64_t last = first + rows < height ? first + rows : height;
            memset(block, 0, (size_t)((last - first) * width));
            for (int64_t y = first; y < last && length > 0; y++) {
                const int64_t row = y - down;
                if (row < 0 || row >= height)
                    continue;
                const uint8_t *line = source + row * width;
                uint8_t *to = block + (y - first) * width + from;
                if (job->flip[i]) {
                    line += width - 1 - (from - right);
                    for (int64_t x = 0; x < length; x++)
                        to[x] = line[-x];
                } else
                    memcpy(to, line + (from - right), (size_t)length);
            }
            for (int64_t k = 0; k < (last - first) * width; k++)
                *out++ = (float)block[k] / 255.0f;
        }
    }
}

/* Returns 1, with nothing done, for images wider than a block. One thread: a batch takes less time than waking a second one may. */
int curvact_augment(const uint8_t *images, const int64_t *index, const int64_t *down, const int64_t *right, const uint8_t *flip, float *out,
                    int64_t count, int64_t channels, int64_t height, int64_t width) {
    if (width > BLOCK)
        return 1;
    const Job job = {images, index, down, right, flip, out, channels, height, width};
    for (int64_t i = 0; i < count; i++)
        one(&job, i);
    return 0;
}
