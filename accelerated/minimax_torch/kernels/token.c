// One token of one layer for B rows, on a CPU: every weight is read once, and hardly anything else is done.
//
// The functions are those of minimax_torch.layers, in their order, for T = 1. Threads share the rows of each matrix;
// they wait for each other where the next step needs all of the last one (each "omp for" ends in a barrier).
// Numbers are float32; a matrix is float32, or int8 codes with a scale for each row, which are never written out wide.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const void *data;     // (m, n), float or int8_t
    const float *scales;  // (m), or none where the matrix is float
} Matrix;

typedef struct {
    int64_t D, H, G, d, R, E, K, F;  // as in the reference's shapes.py; R rotary channels, F the width of an expert
    int64_t postnorm, gelu;
    float eps, inner_eps, alpha, beta, mlp_alpha, mlp_beta;
    const float *norm1, *norm2, *inner, *keep;  // gains; exp(-slope) of each head
    const double *frequencies;                  // (R/2)
    Matrix qkv, gate, out, q, k, v;             // a softmax layer has the last three, and its o_proj in "out"
    const float *router;                        // (E, D)
    const Matrix *up, *down;                    // (E) matrices each: (2F, D) and (D, F)
} Layer;

// ---- Products -------------------------------------------------------------------------------------------------------

#define FOUR(TYPE)                                                                      \
    const TYPE *a = (const TYPE *)w.data + r0 * n, *b = (const TYPE *)w.data + r1 * n;  \
    const TYPE *c = (const TYPE *)w.data + r2 * n, *e = (const TYPE *)w.data + r3 * n;  \
    _Pragma("omp simd reduction(+ : s0, s1, s2, s3)") for (int64_t i = 0; i < n; i++) { \
        s0 += (float)a[i] * x[i], s1 += (float)b[i] * x[i];                             \
        s2 += (float)c[i] * x[i], s3 += (float)e[i] * x[i];                             \
    }

// Four rows of a matrix times x: four sums at a time keep the arithmetic busy while the next weights come.
static void four_rows(Matrix w, int64_t n, int64_t r0, int64_t r1, int64_t r2, int64_t r3, const float *x, float y[4]) {
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    if (w.scales) {
        FOUR(int8_t)
        s0 *= w.scales[r0] / 127, s1 *= w.scales[r1] / 127, s2 *= w.scales[r2] / 127, s3 *= w.scales[r3] / 127;
    } else {
        FOUR(float)
    }
    y[0] = s0, y[1] = s1, y[2] = s2, y[3] = s3;
}

// Rows r … r + 3; past the last one, the last one again.
static void rows_at(Matrix w, int64_t m, int64_t n, int64_t r, const float *x, float y[4]) {
    int64_t last = m - 1;
    four_rows(w, n, r, r + 1 < m ? r + 1 : last, r + 2 < m ? r + 2 : last, r + 3 < m ? r + 3 : last, x, y);
}

static float dot(const float *a, const float *b, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

// ---- Pointwise ------------------------------------------------------------------------------------------------------

static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

static float activate(float x, int64_t gelu) {
    return gelu ? 0.5f * x * (1 + erff(x * 0.70710678f)) : x * sigmoid(x);
}

static void rms_norm(const float *x, const float *gain, float eps, int64_t n, float *y) {
    float scale = 1 / sqrtf(dot(x, x, n) / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * gain[i];
}

// ---- Experts --------------------------------------------------------------------------------------------------------

// The K highest of E scores, the first among equals; their shares of the softmax.
static void route(const float *logits, int64_t E, int64_t K, int64_t *chosen, float *share) {
    float sum = 0;
    for (int64_t k = 0; k < K; k++) {
        int64_t best = -1;
        for (int64_t e = 0; e < E; e++) {
            int taken = 0;
            for (int64_t j = 0; j < k; j++) taken |= chosen[j] == e;
            if (!taken && (best < 0 || logits[e] > logits[best] || (isnan(logits[e]) && !isnan(logits[best])))) best = e;
        }
        chosen[k] = best;
        share[k] = expf(logits[best] - logits[chosen[0]]);
        sum += share[k];
    }
    for (int64_t k = 0; k < K; k++) share[k] /= sum;
}

// The part of n rows that is the calling thread's.
static void my_part(int64_t n, int64_t *from, int64_t *to) {
    int64_t each = (n + omp_get_num_threads() - 1) / omp_get_num_threads(), start = each * omp_get_thread_num();
    *from = start < n ? start : n, *to = start + each < n ? start + each : n;
}

// x, the residual stream after attention, becomes the layer's output. Called by every thread of a team.
static void sparse_moe(const Layer *L, int64_t B, float *x, float *n2, float *hidden, float *logits, int64_t *chosen,
                       float *share) {
    int64_t D = L->D, E = L->E, K = L->K, F = L->F;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < B; b++) {
        rms_norm(x + b * D, L->norm2, L->eps, D, n2 + b * D);
        for (int64_t e = 0; e < E; e++) logits[b * E + e] = dot(L->router + e * D, n2 + b * D, D);
        route(logits + b * E, E, K, chosen + b * K, share + b * K);
    }
    // hidden[b, k] = act(gate) · up. Each thread takes its part of every expert, so that all have as much to read; what
    // it takes of one expert lies together, and is read once for all rows that chose it.
    int64_t from, to;
    my_part(F, &from, &to);
    for (int64_t e = 0; e < E; e++)
        for (int64_t r = from; r < to; r += 2)
            for (int64_t c = 0; c < B * K; c++)
                if (chosen[c] == e) {
                    int64_t s = r + 1 < to ? r + 1 : r;
                    float y[4];
                    four_rows(L->up[e], D, r, F + r, s, F + s, n2 + c / K * D, y);
                    hidden[c * F + r] = activate(y[0], L->gelu) * y[1];
                    hidden[c * F + s] = activate(y[2], L->gelu) * y[3];
                }
#pragma omp barrier
    my_part(D, &from, &to);
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = from; i < to; i++) x[b * D + i] = L->mlp_alpha * (L->postnorm ? n2 : x)[b * D + i];
    for (int64_t e = 0; e < E; e++)
        for (int64_t r = from; r < to; r += 4)
            for (int64_t c = 0; c < B * K; c++)
                if (chosen[c] == e) {
                    float y[4];
                    rows_at(L->down[e], D, F, r, hidden + c * F, y);
                    for (int64_t i = 0; i < 4 && r + i < to; i++) x[c / K * D + r + i] += L->mlp_beta * share[c] * y[i];
                }
#pragma omp barrier
}

// x = α · (n1 or x) + β · W_o a: what both kinds of attention end with.
static void join(const Layer *L, int64_t B, const float *a, const float *n1, float *x) {
    int64_t D = L->D, width = L->H * L->d;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < D; r += 4)
        for (int64_t b = 0; b < B; b++) {
            float y[4];
            rows_at(L->out, D, width, r, a + b * width, y);
            for (int64_t i = r; i < r + 4 && i < D; i++)
                x[b * D + i] = L->alpha * (L->postnorm ? n1 : x)[b * D + i] + L->beta * y[i - r];
        }
}

// ---- The two kinds of layer -----------------------------------------------------------------------------------------

// Scratch of a call: B · scratch_floats(L) floats. The layer reads x (B, D) and leaves its output there.
int64_t scratch_floats(const Layer *L) {
    return 2 * L->D + 6 * L->H * L->d + L->K * L->F + 3 * L->K;
}

typedef struct {
    float *n1, *n2, *qkv, *gate, *read, *hidden, *share;
    int64_t *chosen;
} Scratch;

static Scratch cut(const Layer *L, int64_t B, float *at) {
    int64_t width = L->H * L->d;
    Scratch s;
    s.chosen = (int64_t *)at, at += 2 * B * L->K;  // first, where it is aligned
    s.n1 = at, at += B * L->D;
    s.n2 = at, at += B * L->D;
    s.qkv = at, at += B * 3 * width;
    s.gate = at, at += B * width;
    s.read = at, at += B * width;
    s.hidden = at, at += B * L->K * L->F;
    s.share = at;
    return s;
}

void lightning_layer(const Layer *L, int64_t B, int threads, float *x, const float *before, float *after, float *logits,
                     float *scratch) {
    int64_t D = L->D, H = L->H, d = L->d, width = H * d, rows = 4 * width;
    Scratch s = cut(L, B, scratch);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) rms_norm(x + b * D, L->norm1, L->eps, D, s.n1 + b * D);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += 4)  // 3 · width rows of qkv, then width rows of the gate
            for (int64_t b = 0; b < B; b++) {
                float y[4];
                int gated = r >= 3 * width;  // d is a multiple of 4
                four_rows(gated ? L->gate : L->qkv, D, r - gated * 3 * width, r - gated * 3 * width + 1,
                          r - gated * 3 * width + 2, r - gated * 3 * width + 3, s.n1 + b * D, y);
                for (int i = 0; i < 4; i++)
                    if (gated)
                        s.gate[b * width + r - 3 * width + i] = sigmoid(y[i]);
                    else
                        s.qkv[b * 3 * width + r + i] = activate(y[i], L->gelu);
            }
#pragma omp for schedule(static)
        for (int64_t p = 0; p < B * H; p++) {  // S ← e^(−s) S + k vᵀ, o = q S
            const float *q = s.qkv + p * 3 * d, *k = q + d, *v = k + d, *S = before ? before + p * d * d : 0;
            float *N = after + p * d * d, *o = s.read + p * d, keep = L->keep[p % H];
            memset(o, 0, d * sizeof(float));
            for (int64_t i = 0; i < d; i++)
#pragma omp simd
                for (int64_t j = 0; j < d; j++) {
                    N[i * d + j] = (S ? keep * S[i * d + j] : 0) + k[i] * v[j];
                    o[j] += q[i] * N[i * d + j];
                }
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            float *o = s.read + b * width;
            rms_norm(o, L->inner, L->inner_eps, width, o);
            for (int64_t i = 0; i < width; i++) o[i] *= s.gate[b * width + i];
        }
        join(L, B, s.read, s.n1, x);
        sparse_moe(L, B, x, s.n2, s.hidden, logits, s.chosen, s.share);
    }
}

static void turn(float *x, const double *frequencies, int64_t R, double position) {
    for (int64_t i = 0; i < R / 2; i++) {
        float c = cos(position * frequencies[i]), n = sin(position * frequencies[i]), a = x[i], b = x[i + R / 2];
        x[i] = a * c - b * n, x[i + R / 2] = b * c + a * n;
    }
}

// keys and values are (B, G, capacity, d); row b has seen[b] of them, this token's, which goes into slot[b], included.
void softmax_layer(const Layer *L, int64_t B, int threads, float *x, float *keys, float *values, int64_t capacity,
                   const int64_t *position, const int64_t *slot, const int64_t *seen, float *logits, float *scratch) {
    int64_t D = L->D, H = L->H, G = L->G, d = L->d, width = H * d, rows = (H + 2 * G) * d;
    Scratch s = cut(L, B, scratch);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) rms_norm(x + b * D, L->norm1, L->eps, D, s.n1 + b * D);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r += 4) {
            int64_t which = r < width ? 0 : r < width + G * d ? 1 : 2;
            int64_t first = which == 0 ? r : which == 1 ? r - width : r - width - G * d;
            for (int64_t b = 0; b < B; b++)
                four_rows(which == 0 ? L->q : which == 1 ? L->k : L->v, D, first, first + 1, first + 2, first + 3,
                          s.n1 + b * D, s.qkv + b * 3 * width + r);
        }
#pragma omp for schedule(static)
        for (int64_t p = 0; p < B * (H + 2 * G); p++) {
            int64_t b = p / (H + 2 * G), h = p % (H + 2 * G), g = h < H + G ? h - H : h - H - G;
            float *head = s.qkv + b * 3 * width + h * d;
            if (h < H + G) turn(head, L->frequencies, L->R, position[b]);
            if (h >= H) memcpy((h < H + G ? keys : values) + ((b * G + g) * capacity + slot[b]) * d, head, d * sizeof(float));
        }
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < B * H; p++) {  // a running softmax: what was summed shrinks when a higher score comes
            int64_t b = p / H, h = p % H;
            const float *q = s.qkv + b * 3 * width + h * d;
            const float *k = keys + (b * G + h / (H / G)) * capacity * d, *v = values + (k - keys);
            float *o = s.read + p * d, high = -INFINITY, sum = 0, scale = 1 / sqrtf(d);
            memset(o, 0, d * sizeof(float));
            for (int64_t j = 0; j < seen[b]; j += 16) {
                int64_t many = seen[b] - j < 16 ? seen[b] - j : 16;
                float score[16], higher = high;
                for (int64_t i = 0; i < many; i++) {
                    score[i] = scale * dot(q, k + (j + i) * d, d);
                    higher = score[i] > higher || isnan(score[i]) ? score[i] : higher;
                }
                if (higher != high) {
                    float shrink = expf(high - higher);
                    sum *= shrink, high = higher;
                    for (int64_t i = 0; i < d; i++) o[i] *= shrink;
                }
                for (int64_t i = 0; i < many; i++) {
                    float weight = expf(score[i] - high);
                    const float *value = v + (j + i) * d;
                    sum += weight;
#pragma omp simd
                    for (int64_t c = 0; c < d; c++) o[c] += weight * value[c];
                }
            }
            for (int64_t i = 0; i < d; i++) o[i] /= sum;
        }
        join(L, B, s.read, s.n1, x);
        sparse_moe(L, B, x, s.n2, s.hidden, logits, s.chosen, s.share);
    }
}
